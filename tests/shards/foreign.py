"""How readers that know nothing of us open a shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from nvidia.dali import fn, pipeline_def, types
from wds2idx import IndexCreator
from zarr.buffer.cpu import Buffer
from zarr.storage import FsspecStore, MemoryStore

SHARD = "shard-000000.tar"


def voxels(zarr_json: Any, zshard: Any) -> np.ndarray:
    """The array that two members are, by zarr."""
    files = {"zarr.json": bytes(zarr_json), "c/0/0/0": bytes(zshard)}
    store = MemoryStore({key: Buffer.from_bytes(data) for key, data in files.items()})
    return zarr.open_array(store, mode="r")[:]


def open_references(folder: Path) -> zarr.Group:
    """The first shard as a Zarr group, by its kerchunk references."""
    store = FsspecStore.from_url(
        "reference://",
        storage_options={
            "fo": str(folder / f"{SHARD}.refs.json"),
            "template_overrides": {"u": f"file://{folder}/"},
            "remote_protocol": "file",
        },
        read_only=True,
    )
    return zarr.open_group(store, mode="r")


def dali_samples(
    folder: Path, suffixes: Sequence[str], n_samples: int, missing: str = "error"
) -> list[list[np.ndarray]]:
    """Bytes of these members of each sample of the first shard, by DALI's reader and our index."""

    @pipeline_def(batch_size=n_samples, num_threads=1, device_id=None)
    def pipeline() -> tuple[Any, ...]:
        return tuple(
            fn.readers.webdataset(
                paths=str(folder / SHARD),
                index_paths=str(folder / f"{SHARD}.idx"),
                ext=list(suffixes),
                missing_component_behavior=missing,
                dtypes=[types.UINT8] * len(suffixes),
            )
        )

    built = pipeline()
    built.build()
    outputs = built.run()
    return [[output.at(n) for output in outputs] for n in range(n_samples)]


def wds2idx(folder: Path, scratch: Path) -> bytes:
    """What DALI's own tool makes of the first shard."""
    with IndexCreator(str(folder / SHARD), str(scratch / "idx"), verbose=False) as creator:
        creator.create_index()
    return (scratch / "idx").read_bytes()
