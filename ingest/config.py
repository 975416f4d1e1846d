"""What a build is asked to do, apart from where it reads and writes."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from shards.schema import canonical_json

Spacing = tuple[float, float, float] | None
"""Target spacing (z, y, x) in mm; None keeps each volume's own."""
BYTE_SHAPING_PACKAGES = (
    "coralbay", "numcodecs", "numpy", "pydicom", "nibabel", "scipy",
    "imagecodecs", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "SimpleITK",
)  # fmt: skip
"""Recorded with their versions: other versions may give other bytes."""
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 20.0


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Every setting that shapes the dataset; paths, workers and failure budget stay outside."""

    spacing_zyx_mm: Spacing = (1.5, 1.5, 1.5)
    body_crop: bool = True
    resample: Literal["antialias", "linear"] = "antialias"
    profile: Literal["balanced", "ratio", "gpu"] = "balanced"
    shard_mib: int = 384
    min_slices: int = 10
    source: str = "default"
    min_coverage_mm: float = 0.0
    select: Literal["all", "thinnest-soft-tissue"] = "all"
    heads: Literal["keep", "drop"] = "keep"
    label_names: tuple[tuple[int, str], ...] = ()
    """Names of the values of NIfTI labels."""

    def __post_init__(self) -> None:
        if self.shard_mib < 1:
            raise ValueError(f"--shard-mib {self.shard_mib}: give 1 or more")
        if self.min_slices < 2:
            raise ValueError(f"--min-slices {self.min_slices}: a volume needs 2 slices or more")
        if not 0 <= self.min_coverage_mm < float("inf"):
            raise ValueError(f"--min-coverage-mm {self.min_coverage_mm:g}: give 0 or more")
        for mm in self.spacing_zyx_mm or ():
            if not MIN_SPACING_MM <= mm <= MAX_SPACING_MM:
                raise ValueError(
                    f"--spacing-mm {mm:g}: give {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm, "
                    "three such numbers as z,y,x, or native"
                )


def parse_spacing(text: str) -> Spacing:
    """Read ``1.5``, ``z,y,x`` or ``native``.

    >>> parse_spacing("1.5"), parse_spacing("3,1,1"), parse_spacing("native")
    ((1.5, 1.5, 1.5), (3.0, 1.0, 1.0), None)

    Raises:
        ValueError: anything else.
    """
    if text == "native":
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise ValueError(f"--spacing-mm {text}: give one number, three as z,y,x, or native")
    return numbers[0], numbers[1], numbers[2]


def build_digest(
    config: BuildConfig, id_key_fingerprint: str, series: Iterable[Any], exclude_sha256: str = ""
) -> str:
    """Name of a build: equal for the same inputs, identifiers and settings, in whatever order read.

    Args:
        config: the settings.
        id_key_fingerprint: of the key behind the identifiers.
        series: the scan's series; of each, its identity and what the headers said of it.
        exclude_sha256: of the exclusion list, whose voxels only the pixel stage compares.
    """
    settings = {name: getattr(config, name) for name in sorted(config.__dataclass_fields__)}
    if not config.label_names:
        del settings["label_names"]  # So that builds without labels keep the name they had.
    identity: dict[str, Any] = {
        "config": settings,
        "id_key": id_key_fingerprint,
        "series": sorted(
            [s.series_id, s.key, str(s.reason), s.n_files, s.n_slices]
            + ([] if s.label is None else [s.label.series_id])
            for s in series
        ),
    }
    if exclude_sha256:
        identity["exclude"] = exclude_sha256
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape bytes."""
    return {name: importlib.metadata.version(name) for name in BYTE_SHAPING_PACKAGES}
