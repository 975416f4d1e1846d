"""Splits a dataset by subject: who is held out depends on the subject's id alone.

So a subject stays on its side when the dataset grows, whatever else is in it, and all series of a
subject are on the same side.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64
from numpy import ndarray

Split: TypeAlias = Literal["train", "held_out", "all"]


def held_out(
    keys: pa.Array, subjects: pa.DictionaryArray, *, holdout: float, seed: int
) -> Bool[ndarray, " n"]:
    """Which samples are held out: about ``holdout`` of all subjects.

    Args:
        keys: of all samples; they decide where the subject id is empty.
        subjects: ids of the same samples.
        holdout: share of subjects, from 0 to 1.
        seed: another one holds out others.
    """
    subject = subjects.indices.to_numpy()
    found = places(seed, "subject", subjects.dictionary)[subject]
    unknown = np.flatnonzero(subject == pc.index(subjects.dictionary, "").as_py())
    if len(unknown):
        found[unknown] = places(seed, "key", keys.take(pa.array(unknown)))
    out: Bool[ndarray, " n"] = found < holdout
    return out


def places(seed: int, kind: Literal["subject", "key"], names: pa.Array) -> Float64[ndarray, " n"]:
    """Where subjects, or samples without one, lie in [0, 1).

    >>> places(0, "subject", pa.array(["someone"])).tolist()
    [0.5399013154177339]
    """
    prefix = f"{seed} {kind} ".encode()
    digests = b"".join(
        blake2b(prefix + name, digest_size=8).digest()
        for name in names.cast(pa.binary()).to_pylist()
    )
    # 53 bits: each is a float64 below 1.
    return (np.frombuffer(digests, dtype="<u8") >> 11) / 2**53
