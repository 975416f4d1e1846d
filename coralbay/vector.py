"""The multi-scale vector: global average pools of several levels, concatenated.

``24F`` pools ``[enc0, enc1, enc2, enc3, dec4]``, so that the loss reaches every block of the
encoder that a frozen evaluation will use. ``31F`` pools the Swin's own five stages and leaves the
convolutional blocks untrained; ``16F`` pools the deepest map alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from coralbay.recipes import LevelNorm, VectorKind
from coralbay.swin3d import SwinEncoder

_WIDTHS: dict[VectorKind, tuple[int, ...]] = {
    "24F": (1, 1, 2, 4, 16),
    "31F": (1, 2, 4, 8, 16),
    "16F": (16,),
}
"""Channels of the pooled levels, in units of F, shallowest first."""


def level_widths(feature_size: int, which: VectorKind = "24F") -> tuple[int, ...]:
    """Channels of each pooled level, shallowest first."""
    return tuple(feature_size * width for width in _WIDTHS[which])


def vector_dim(feature_size: int, which: VectorKind = "24F") -> int:
    """Length of the vector."""
    return sum(level_widths(feature_size, which))


def encode_vector(
    encoder: SwinEncoder,
    x: Float[Tensor, "b 1 d h w"],
    which: VectorKind = "24F",
    level_norm: LevelNorm = "none",
) -> Float[Tensor, "b dim"]:
    """Encode a batch and pool it."""
    maps = encoder.hidden_states(x) if which == "31F" else encoder(x)
    return pool_vector(maps, which, level_norm)


def pool_vector(
    maps: Sequence[Tensor], which: VectorKind = "24F", level_norm: LevelNorm = "none"
) -> Float[Tensor, "b dim"]:
    """Pool the wanted levels over space and concatenate them.

    Args:
        maps: the encoder's six maps; for ``31F`` its five hidden states.
        which: levels to pool.
        level_norm: ``layer`` gives every level mean 0 and variance 1 over its channels, sample by
            sample and without learnt scale, so that no level dominates by the size of its values.

    Returns:
        One float32 row a sample; half precision would lose the little that shallow pools vary.
    """
    levels = _pick(maps, which)
    pools = [level.mean(dim=(2, 3, 4), dtype=torch.float32) for level in levels]
    if level_norm == "layer":
        pools = [functional.layer_norm(pool, pool.shape[1:]) for pool in pools]
    return torch.cat(pools, dim=1)


def _pick(maps: Sequence[Tensor], which: VectorKind) -> Sequence[Tensor]:
    """Select the levels to pool."""
    if which == "31F":
        return maps
    enc0, enc1, enc2, enc3, _hid3, dec4 = maps
    return [dec4] if which == "16F" else [enc0, enc1, enc2, enc3, dec4]
