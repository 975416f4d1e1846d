"""What planning needs of a dataset, out of its index: filters, the split, and codes for names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32
from numpy import ndarray

from shards.index_file import IndexFile, Strings, codes
from shards.plan import PlanSamples, Rows
from shards.split import Split, held_out
from shards.where import Where


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which samples take part.

    Raises:
        WhereError: ``where`` is no filter expression.
        ValueError: ``holdout`` is no share.
    """

    where: str = ""
    """Only samples for which this is true; see ``shards.where``."""
    holdout: float = 0.0
    """Share of subjects that is held out, from 0 to 1."""
    split: Split = "all"
    """Which side of that split."""
    split_seed: int = 0
    """Another one holds out others."""

    def __post_init__(self) -> None:
        """Bring ``where`` to its one form: equal filters have equal settings."""
        if not 0 <= self.holdout <= 1:
            raise ValueError(f"holdout must be from 0 to 1, got {self.holdout}")
        object.__setattr__(self, "where", Where(self.where).text)


def plan_samples(
    index: IndexFile, selection: Selection, *, chunk_side: int, air_mask: Rows
) -> PlanSamples:
    """One row a sample, in index order. Reads a column at a time and keeps what is needed.

    Args:
        index: of the dataset; its bytes are forgotten.
        selection: who takes part.
        chunk_side: voxels.
        air_mask: of any sample.
    """
    # The ids take the most memory while they are read, so they come before all that is kept.
    subjects = index.encoded("subject_id")
    takes_part = select(index, selection, subjects)
    subject = subject_codes(subjects)
    del subjects
    [source] = index.columns("source")
    samples = PlanSamples(
        trainable=takes_part,
        shard_number=index.shard_numbers,
        offset=index.offsets,
        shapes=index.shapes,
        source=codes(source),
        source_names=tuple(source.dictionary.to_pylist()),
        subject=subject,
        chunk_side=chunk_side,
        air_mask=air_mask,
        keys=Strings(index.keys),
    )
    index.forget()
    return samples


def select(
    index: IndexFile, selection: Selection, subjects: pa.DictionaryArray
) -> Bool[ndarray, " n"]:
    """Which samples take part.

    Args:
        index: of the dataset.
        selection: filter and split.
        subjects: its subject ids.
    """
    [trainable] = index.columns("trainable")
    takes_part: Bool[ndarray, " n"] = trainable.to_numpy(zero_copy_only=False).copy()
    where = Where(selection.where)
    names = sorted(where.stored)
    stored = dict(zip(names, index.columns(*names), strict=True))
    takes_part &= where.rows(stored, index.num_rows)
    if selection.split != "all":
        out = held_out(index.keys, subjects, holdout=selection.holdout, seed=selection.split_seed)
        takes_part &= out if selection.split == "held_out" else ~out
    return takes_part


def subject_codes(subjects: pa.DictionaryArray) -> Int32[ndarray, " n"]:
    """Equal numbers for equal subject ids; each sample without one has a number of its own."""
    found = codes(subjects).copy()
    unknown = np.flatnonzero(found == pc.index(subjects.dictionary, "").as_py())
    found[unknown] = len(subjects.dictionary) + np.arange(len(unknown))
    return found
