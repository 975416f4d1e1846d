"""The one block of memory that slots are carved from: this process's own, or shared with another.

A shared block is anonymous (``memfd_create``): it has no name, so that nothing stays in /dev/shm
whoever is killed, and the size of /dev/shm, 64 MB in most containers, does not bound it.
"""

from __future__ import annotations

import logging
import mmap
import os

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from train.loader.slots import PAGE

logger = logging.getLogger(__name__)


def own_block(nbytes: int, *, pinned: bool = False) -> UInt8[ndarray, " block"]:
    """Memory of this process, zero.

    Args:
        nbytes: how much.
        pinned: page-locked, which a GPU reads at full speed without staging.
    """
    if pinned:
        import torch

        return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    block = np.zeros(nbytes + PAGE, dtype=np.uint8)
    first_page = -block.ctypes.data % PAGE
    return block[first_page : first_page + nbytes]


def create_shared(nbytes: int) -> int:
    """A file descriptor of memory to share, zero; it goes when nobody has it open or mapped.

    Raises:
        OSError: the system gives none.
    """
    descriptor = os.memfd_create("coralbay-slots")
    try:
        os.ftruncate(descriptor, nbytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def map_shared(descriptor: int, nbytes: int) -> UInt8[ndarray, " block"]:
    """The memory of ``create_shared``, the same for all that map it."""
    return np.frombuffer(mmap.mmap(descriptor, nbytes), dtype=np.uint8)


def pin(block: UInt8[ndarray, " block"]) -> bool:
    """Lock a block's pages for a GPU; False, with a warning, if CUDA does not."""
    import torch

    # torch pins only memory that it has allocated itself.
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(block.ctypes.data, block.nbytes, 0))
    if code:
        logger.warning(
            "CUDA does not pin %.0f MB of shared memory (error %d, see `ulimit -l`): copies to the "
            "GPU are slower than with --feed threads",
            block.nbytes / 1e6,
            code,
        )
    return not code


def unpin(block: UInt8[ndarray, " block"]) -> None:
    """Undo ``pin``; nothing on the GPU may still read the block."""
    import torch

    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(block.ctypes.data)
