"""Counter-based random numbers: a draw depends on its coordinates, never on what was drawn before.

Philox 4x64-10 (Salmon et al., SC 2011). The raw 64-bit words are used instead of numpy's
distributions, whose algorithms may change between versions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt64
from numpy import ndarray

ORDER = 1
"""Stream: order of shards and samples, replacement samples."""
BOX = 2
"""Stream: where a visit's box lies."""
VIEWS = 3
"""Stream: views inside a box and their intensities."""
NOISE = 4
"""Stream: additive noise."""

MANTISSA_BITS = 53
"""Bits of a float64 in [0, 1)."""


def raw(seed: int, stream: int, index: int, attempt: int, n: int) -> UInt64[ndarray, " n"]:
    """``n`` 64-bit words of the draw (seed, stream, index, attempt), each argument below 2⁶⁴.

    The words are those of Philox 4x64-10 with key (seed, stream), from counter
    (1, attempt, index, 0) on, the counter's first word being the least significant. A larger ``n``
    only appends.
    """
    bits = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64),
        counter=np.array([0, attempt, index, 0], dtype=np.uint64),
    )
    words: UInt64[ndarray, " n"] = bits.random_raw(n)
    return words


def uniforms(seed: int, stream: int, index: int, attempt: int, n: int) -> Float64[ndarray, " n"]:
    """``n`` numbers in [0, 1): the upper 53 bits of each word."""
    shifted = raw(seed, stream, index, attempt, n) >> np.uint64(64 - MANTISSA_BITS)
    return shifted * 2.0**-MANTISSA_BITS


def permutation(seed: int, stream: int, index: int, n: int) -> Int64[ndarray, " n"]:
    """Order of ``n`` things: the stable sort of their words."""
    order: Int64[ndarray, " n"] = np.argsort(raw(seed, stream, index, 0, n), kind="stable")
    return order
