"""The backbone against MONAI's own Swin UNETR and against the table in ``docs/method.md``."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coralbay.swin3d import SwinEncoder

MANIFEST = json.loads((Path(__file__).parent / "encoder_f48_shapes.json").read_text())
"""Keys and shapes of the encoder part of MONAI 1.6.1's SwinUNETR with F = 48 and use_v2."""


class CpuLinspace(TorchFunctionMode):
    """MONAI reads its drop-path rates back from a tensor, which the meta device cannot do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def on_meta(build: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.device("meta"), CpuLinspace():
        return build(*args, **kwargs)


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def monai_encoder_shapes(feature_size: int, **kwargs: Any) -> dict[str, list[int]]:
    whole = on_meta(SwinUNETR, 1, 2, feature_size=feature_size, **kwargs)
    prefixes = ("swinViT.", "encoder")
    return {key: shape for key, shape in shapes(whole).items() if key.startswith(prefixes)}


def test_keys_and_shapes_are_the_committed_ones() -> None:
    encoder = on_meta(SwinEncoder, 48)
    assert len(MANIFEST) == 145
    assert shapes(encoder) == MANIFEST


def test_without_v2_the_stage_convolutions_are_gone_and_nothing_else() -> None:
    encoder = on_meta(SwinEncoder, 48, use_v2=False)
    kept = {
        key: shape
        for key, shape in MANIFEST.items()
        if not any(f"layers{stage}c." in key for stage in (1, 2, 3, 4))
    }
    assert len(kept) == 137
    assert shapes(encoder) == kept


@pytest.mark.parametrize("feature_size", [96, 192])
@pytest.mark.parametrize("use_v2", [True, False])
def test_larger_sizes_have_monais_keys_and_shapes(feature_size: int, use_v2: bool) -> None:
    encoder = on_meta(SwinEncoder, feature_size, use_v2=use_v2)
    assert shapes(encoder) == monai_encoder_shapes(feature_size, use_v2=use_v2)


@pytest.mark.parametrize(
    ("feature_size", "total", "encoder10"),
    [(48, 53.2, 31.9), (96, 212.0, 127.4), (192, 847.3, 509.6)],
)
def test_parameter_counts(feature_size: int, total: float, encoder10: float) -> None:
    encoder = on_meta(SwinEncoder, feature_size)
    assert millions(encoder) == pytest.approx(total, abs=0.051)
    assert millions(encoder.encoder10) == pytest.approx(encoder10, abs=0.051)


def test_map_shapes_at_96_are_the_tables() -> None:
    encoder = on_meta(SwinEncoder, 48)
    maps = encoder(torch.empty(1, 1, 96, 96, 96, device="meta"))
    assert [tuple(level.shape) for level in maps] == [
        (1, 48, 96, 96, 96),
        (1, 48, 48, 48, 48),
        (1, 96, 24, 24, 24),
        (1, 192, 12, 12, 12),
        (1, 384, 6, 6, 6),
        (1, 768, 3, 3, 3),
    ]


@pytest.mark.parametrize(("use_v2", "window"), [(True, 7), (False, 3)])
def test_maps_equal_monais_swin_unetr_with_the_same_weights(use_v2: bool, window: int) -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(12, use_v2=use_v2, window=window).eval()
    monai = SwinUNETR(1, 2, feature_size=12, use_v2=use_v2, window_size=window).eval()
    missing, unexpected = monai.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("decoder", "out")) for key in missing)

    seen: dict[str, Any] = {}
    for name in ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10"):
        monai.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output})
        )
    x = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        monai(x)
        maps = encoder(x)

    expected: list[Tensor] = [
        seen["encoder1"],
        seen["encoder2"],
        seen["encoder3"],
        seen["encoder4"],
        seen["swinViT"][3],
        seen["encoder10"],
    ]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_patch_merging_takes_the_eight_corners_in_this_order() -> None:
    merging = SwinEncoder(12).swinViT.layers1[0].downsample
    assert type(merging) is PatchMerging
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    z, y, x = torch.meshgrid(*[torch.arange(2.0)] * 3, indexing="ij")
    coded = (100 * z + 10 * y + x)[None, ..., None]
    # (z, y, x) of MONAI >= 1.5; before it, two corners came twice and two never.
    corners = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
    ]
    assert merging(coded).flatten().tolist() == [100 * z + 10 * y + x for z, y, x in corners]


@pytest.mark.parametrize("shape", [(32, 64, 64), (64, 64, 16)])
def test_sides_that_collapse_are_refused_by_name(shape: tuple[int, int, int]) -> None:
    encoder = SwinEncoder(12, depths=(1, 1, 1, 1), window=3)
    with pytest.raises(ValueError, match=r"32 voxels or fewer.*give 33 or more"):
        encoder(torch.zeros(1, 1, *shape))


def test_the_smallest_allowed_side_works() -> None:
    encoder = SwinEncoder(12, depths=(1, 1, 1, 1), window=3)
    maps = encoder(torch.rand(1, 1, 33, 33, 33))
    assert maps[-1].shape == (1, 192, 2, 2, 2)
    assert all(torch.isfinite(level).all() for level in maps)


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    rates = [
        block.drop_path.drop_prob
        for block in SwinEncoder(12, drop_path_rate=0.7).modules()
        if hasattr(block, "drop_path") and hasattr(block.drop_path, "drop_prob")
    ]
    torch.testing.assert_close(rates, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7][-len(rates) :])
