"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

from tests import typechecking

PACKAGES = ("ingest", "shards", "coralbay", "train")
# Every call in this process is checked against the shapes and types of the signature. The hook sees
# what is imported after it; processes that a test starts are not checked.
install_import_hook(PACKAGES, f"{typechecking.__name__}.checked")

# One thread each: results do not depend on the number of cores, nor do tests fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ct_data() -> Path:
    """The folder of real CT; its README says what each file exercises."""
    default = Path(__file__).parents[1].parent / "shared/data/ct"
    path = Path(os.environ.get("CORALBAY_CT_DATA", default))
    if not path.is_dir():
        if os.environ.get("CORALBAY_REQUIRE_CT_DATA"):
            pytest.fail(f"real CT is missing at {path}")
        pytest.skip(f"no real CT at {path} (set CORALBAY_CT_DATA)")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_config_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or makes the id key in the user's own config folder."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No check of signatures: for arguments that the code itself must refuse, or never reads."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests where there is no GPU."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")
