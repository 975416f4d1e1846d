"""Splits a dataset by subject: who is held out depends on the subject's id alone.

So a subject stays on its side when the dataset grows, whatever else is in it, and all series of a
subject are on the same side.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64
from numpy import ndarray

Split: TypeAlias = Literal["train", "held_out", "all"]


def place(seed: int, kind: Literal["subject", "key"], name: str) -> float:
    """Where a subject, or a sample without one, lies in [0, 1).

    >>> place(0, "subject", "someone")
    0.5399013154177339
    """
    digest = hashlib.blake2b(f"{seed} {kind} {name}".encode(), digest_size=8).digest()
    # 53 bits: each is a float64 below 1.
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def held_out(
    keys: pa.Array, subject_ids: pa.Array, *, holdout: float, seed: int
) -> Bool[ndarray, " n"]:
    """Which samples are held out: about ``holdout`` of all subjects.

    Args:
        keys: of all samples; they decide where the subject id is empty.
        subject_ids: of the same samples.
        holdout: share of subjects, from 0 to 1.
        seed: another one holds out others.

    Raises:
        ValueError: ``holdout`` is no share.
    """
    if not 0 <= holdout <= 1:
        raise ValueError(f"holdout must be from 0 to 1, got {holdout}")
    subjects = subject_ids.dictionary_encode()
    by_subject = _places(seed, "subject", subjects.dictionary)
    places = by_subject[subjects.indices.to_numpy()]
    unknown = np.flatnonzero(pc.equal(subject_ids, "").to_numpy(zero_copy_only=False))
    places[unknown] = _places(seed, "key", keys.take(pa.array(unknown)))
    out: Bool[ndarray, " n"] = places < holdout
    return out


def _places(seed: int, kind: Literal["subject", "key"], names: pa.Array) -> Float64[ndarray, " n"]:
    return np.array([place(seed, kind, name) for name in names.to_pylist()], dtype=np.float64)
