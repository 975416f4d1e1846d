"""What the machine must have for the settings chosen; each lack is one line with a way out."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from importlib.util import find_spec

from train.errors import UsageError

REFERENCE = "use --loader reference, which makes the same batches, slower"


def require_dali() -> None:
    """Import DALI.

    Raises:
        UsageError: it is not there, or cannot be.
    """
    if platform.system() != "Linux":
        raise UsageError(f"NVIDIA DALI exists for Linux only, not {platform.system()}: {REFERENCE}")
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        raise UsageError(
            "NVIDIA DALI is not installed: `pip install 'coralbay[cuda13]'` (cuda12 for older "
            f"drivers), or {REFERENCE}"
        )
    try:
        operators = import_module("nvidia.dali.fn")
    except Exception as exc:  # a library that does not load raises anything
        raise UsageError(
            f"NVIDIA DALI is installed but cannot be imported ({_first_line(exc)}): install it "
            f"again by `pip install --force-reinstall 'coralbay[cuda13]'`, or {REFERENCE}"
        ) from exc
    # Not public: what `if` in a pipeline stands for. `graph` says why it is used directly.
    if not hasattr(operators, "_conditional"):
        raise UsageError(
            "this version of NVIDIA DALI has no operators that part a batch: install 2.4, e.g. "
            f"`pip install 'nvidia-dali-cuda130==2.4.*'`, or {REFERENCE}"
        )


def why_no_gpu() -> str | None:
    """Why torch sees no CUDA GPU, and what to do; None if it sees one."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"no CUDA GPU can be used, for torch {torch.__version__} is a build without CUDA; "
            "install one with it (https://pytorch.org/get-started), or use the CPU"
        )
    return (
        f"no CUDA GPU is seen by torch {torch.__version__} (CUDA {torch.version.cuda}): see that "
        "`nvidia-smi` lists one and CUDA_VISIBLE_DEVICES does not hide it, or use the CPU"
    )


def require_gpu() -> None:
    """Look for a CUDA GPU.

    Raises:
        UsageError: torch sees none.
    """
    if (why := why_no_gpu()) is not None:
        raise UsageError(f"device gpu: {why}")


def require_shared_memory() -> None:
    """Look for what a subprocess shares memory by.

    Raises:
        UsageError: the system has no such memory.
    """
    if not hasattr(os, "memfd_create"):
        raise UsageError(
            f"--feed subprocess: shared memory without a name (memfd) exists on Linux only, not "
            f"{platform.system()}: use --feed threads, which gives the same batches"
        )


def _first_line(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}".splitlines()[0]
