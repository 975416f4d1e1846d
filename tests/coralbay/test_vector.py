"""The multi-scale vector and the signs of health computed from it."""

import math

import pytest
import torch

from coralbay.health import level_variance, normalised_entropy
from coralbay.swin3d import SwinEncoder
from coralbay.vector import encode_vector, level_widths, pool_vector, vector_dim


def maps() -> list[torch.Tensor]:
    """Six maps of F = 2 whose values name their level."""
    widths = (2, 2, 4, 8, 16, 32)
    return [torch.full((3, width, 4, 4, 4), float(i)) for i, width in enumerate(widths)]


@pytest.mark.parametrize(("which", "factor"), [("24F", 24), ("31F", 31), ("16F", 16)])
def test_dimensions(which, factor: int) -> None:
    assert vector_dim(48, which) == factor * 48
    assert sum(level_widths(48, which)) == factor * 48


def test_24f_skips_hidden_state_3_and_16f_is_the_deepest() -> None:
    vector = pool_vector(maps(), "24F")
    assert vector.shape == (3, 48)
    assert vector[0].tolist() == [0.0] * 2 + [1.0] * 2 + [2.0] * 4 + [3.0] * 8 + [5.0] * 32
    assert pool_vector(maps(), "16F")[0].tolist() == [5.0] * 32


def test_31f_pools_the_swin_stages() -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(12, depths=(1, 1, 1, 1), window=3)
    x = torch.rand(2, 1, 33, 33, 33)
    vector = encode_vector(encoder, x, "31F")
    expected = torch.cat([h.mean((2, 3, 4)) for h in encoder.swinViT(x)], dim=1)
    assert vector.shape == (2, 31 * 12)
    torch.testing.assert_close(vector, expected)


def test_level_norm_standardises_each_level_of_each_sample() -> None:
    torch.manual_seed(0)
    scaled = [10.0**i * torch.randn(3, c, 4, 4, 4) for i, c in enumerate((2, 2, 4, 8, 16, 32))]
    plain = pool_vector(scaled, "24F")
    normed = pool_vector(scaled, "24F", "layer")
    for before, after in zip(
        plain.split([2, 2, 4, 8, 32], 1), normed.split([2, 2, 4, 8, 32], 1), strict=True
    ):
        centred = before - before.mean(1, keepdim=True)
        expected = centred / torch.sqrt(before.var(1, correction=0, keepdim=True) + 1e-5)
        torch.testing.assert_close(after, expected)


def test_half_precision_maps_are_pooled_in_float32() -> None:
    # 64³ ones sum to more than float16 holds.
    level = torch.ones(1, 2, 64, 64, 64, dtype=torch.float16)
    vector = pool_vector([level] * 6, "24F")
    assert vector.dtype == torch.float32
    assert (vector == 1).all()


def test_level_variance_by_hand() -> None:
    vectors = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 11.0]])
    # Channel variances 1, 0 and 9; the first level has two channels.
    assert level_variance(vectors, (2, 1)).tolist() == [0.5, 9.0]


def test_normalised_entropy_at_both_ends_and_by_hand() -> None:
    zero = torch.zeros(4)
    assert normalised_entropy(torch.zeros(2, 3, 4), zero, 0.04).item() == pytest.approx(1.0)
    sharp = torch.eye(4)[None] * 100
    assert normalised_entropy(sharp, zero, 0.04).item() == pytest.approx(0.0, abs=1e-6)
    # p = (3/4, 1/4) over two prototypes.
    logits = 0.04 * torch.log(torch.tensor([[0.75, 0.25]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert normalised_entropy(logits, zero[:2], 0.04).item() == pytest.approx(entropy, rel=1e-5)
