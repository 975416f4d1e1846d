"""What tests and benchmarks of shards need: small valid datasets."""

from shards.testing.toy import (
    SPACING_MM,
    TOY_SHAPE,
    toy_affine,
    toy_key,
    toy_label,
    toy_labels,
    toy_meta,
    toy_volume,
    withdraw,
    write_dataset,
    write_toy_dataset,
)

__all__ = [
    "SPACING_MM",
    "TOY_SHAPE",
    "toy_affine",
    "toy_key",
    "toy_label",
    "toy_labels",
    "toy_meta",
    "toy_volume",
    "withdraw",
    "write_dataset",
    "write_toy_dataset",
]
