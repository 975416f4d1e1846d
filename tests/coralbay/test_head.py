"""The projection head against closed forms."""

import torch
from torch.nn.utils.parametrizations import weight_norm

from coralbay.head import DinoHead, UnitLinear


def test_logits_are_cosines() -> None:
    torch.manual_seed(0)
    head = DinoHead(24, 32, 16, 100)
    logits = head(torch.randn(8, 24) * 50)
    assert logits.shape == (8, 100)
    assert logits.abs().max() <= 1 + 1e-6
    bottleneck = head.mlp(torch.ones(1, 24))
    expected = torch.cosine_similarity(bottleneck, head.last_layer.weight)
    torch.testing.assert_close(head(torch.ones(1, 24))[0], expected)


def test_last_layer_is_pytorchs_weight_norm_with_gain_one() -> None:
    torch.manual_seed(0)
    ours = UnitLinear(16, 100).double()
    reference = weight_norm(torch.nn.Linear(16, 100, bias=False).double())
    reference.parametrizations.weight.original1.data.copy_(ours.weight.data)
    reference.parametrizations.weight.original0.data.fill_(1.0)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), reference(x))
    ours(x).square().sum().backward()
    reference(x).square().sum().backward()
    expected = reference.parametrizations.weight.original1.grad
    torch.testing.assert_close(ours.weight.grad, expected)


def test_shape_of_the_mlp_and_its_first_weights() -> None:
    torch.manual_seed(0)
    head = DinoHead(300, 400, 256, 1000)
    linears = [module for module in head.mlp if isinstance(module, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [
        (300, 400),
        (400, 400),
        (400, 256),
    ]
    for weight in [*[m.weight for m in linears], head.last_layer.weight]:
        torch.testing.assert_close(weight.std(), torch.tensor(0.02), rtol=0.02, atol=0)
    assert all((m.bias == 0).all() for m in linears)
    assert sum(p.numel() for p in head.last_layer.parameters()) == 256 * 1000  # no bias, no gain
