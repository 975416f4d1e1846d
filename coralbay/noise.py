"""The noise bank: a fixed cube of standard normal numbers, of which views add windows.

So noise is a place in the bank and a standard deviation, data like every other parameter of a view:
the same on a CPU and a GPU, and drawn anew for every view.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float16
from numpy import ndarray
from scipy import special

KEY = (0, 4)
"""Of Philox; 4 is the stream that ``shards.rng`` keeps for noise."""
SLAB = 1 << 20
"""Numbers made at a time, so that building needs little more memory than the bank."""


def bank_side(sizes: tuple[int, ...]) -> int:
    """Side of the bank for views of these sizes: twice the largest.

    A view of that size then has size³ places (96³: 884,736), a smaller one more.
    """
    return 2 * max(sizes)


@lru_cache(maxsize=4)
def noise_bank(side: int) -> Float16[ndarray, "side side side"]:
    """Standard normal numbers, (z, y, x), read-only; made once in a process.

    The raw words of Philox 4x64-10 (Salmon et al., SC 2011), each mapped through the inverse of the
    normal distribution function: numpy's own distributions may change between versions. float16
    halves the memory and what is read for a view; its rounding, 2⁻¹¹ of a value, also hides the
    last bits in which machines may differ.
    """
    words = np.random.Philox(key=np.array(KEY, dtype=np.uint64), counter=0)
    bank = np.empty(side**3, dtype=np.float16)
    for start in range(0, len(bank), SLAB):
        slab = bank[start : start + SLAB]
        # The middle of one of 2⁵² equal intervals: never 0 or 1, whose normal number is infinite.
        uniform = ((words.random_raw(len(slab)) >> np.uint64(12)) + 0.5) * 2.0**-52
        slab[:] = special.ndtri(uniform)
    bank.setflags(write=False)
    return bank.reshape(side, side, side)
