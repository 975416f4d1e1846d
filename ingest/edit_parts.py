"""What each source gives to a merged dataset, and whether the sources go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingest.edit import Base
from ingest.errors import UsageError
from ingest.record import one_way


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one source gives to the output."""

    base: Base
    duplicates: frozenset[str]
    withdrawn: frozenset[str]

    @property
    def left_out(self) -> frozenset[str]:
        """Keys that are not taken from here."""
        return self.duplicates | self.withdrawn


def check_alike(bases: Sequence[Base]) -> None:
    """Raise UsageError unless the sources may be one dataset."""
    first = bases[0]
    for base in bases[1:]:
        if base.manifest.contract_sha256 != first.manifest.contract_sha256:
            raise UsageError(
                f"{base.folder}: its preprocessing contract is not that of {first.folder}; build "
                "both with the same settings (`ingest inspect` shows them)"
            )
        if base.manifest.id_key_fingerprint != first.manifest.id_key_fingerprint:
            raise UsageError(
                f"{base.folder}: was made with another id key than {first.folder}, so one patient "
                "could be two; build it again with the same --id-key"
            )
        mine, others = (b.manifest.contract.recorded.profile for b in (base, first))
        if mine != others:
            raise UsageError(
                f"{base.folder}: has profile {mine}, but {first.folder} has {others}; all samples "
                "of a dataset share one"
            )


def check_apart(sources: Sequence[Path], out: Path) -> None:
    """Raise UsageError if a folder is named twice or lies in another."""
    places = [source.resolve() for source in sources]
    if len(set(places)) < len(places):
        raise UsageError("the same dataset is named twice; name each once")
    target = out.resolve()
    for place in places:
        if target == place or place.is_relative_to(target) or target.is_relative_to(place):
            raise UsageError(f"{out}: OUT and {place} lie in each other; give a new folder")


def cut_parts(bases: Sequence[Base]) -> list[Part]:
    """Which samples each source gives: the first that has a key gives it.

    Raises:
        UsageError: a key has other content in another source.
    """
    forgotten = all_forgotten(bases)
    seen: dict[str, Base] = {}
    parts = []
    for base in bases:
        duplicates: set[str] = set()
        withdrawn: set[str] = set()
        for row in base.dataset.index.select(["key", "subject_id"]).to_pylist():
            key = row["key"]
            if one_way(row["subject_id"]) in forgotten:
                withdrawn.add(key)
            elif (other := seen.setdefault(key, base)) is not base:
                _check_same(key, other, base)
                duplicates.add(key)
        parts.append(
            Part(base=base, duplicates=frozenset(duplicates), withdrawn=frozenset(withdrawn))
        )
    return parts


def _check_same(key: str, one: Base, other: Base) -> None:
    if one.dataset.meta(key).content_sha256 != other.dataset.meta(key).content_sha256:
        raise UsageError(
            f"{other.folder}: sample {key} differs from that of {one.folder} "
            "(other settings, package versions or files); keep one of them: `ingest forget` its "
            "subject in the other, or build that one again"
        )


def all_forgotten(bases: Sequence[Base]) -> set[str]:
    """Withdrawn subjects of all the sources, as their records name them."""
    return {subject for base in bases for subject in base.record.forgotten}
