"""The DALI graph against the plain reference, and against slices where nothing is resampled."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from coralbay.augment import render_set
from coralbay.draws import ViewDraws, draw_views
from coralbay.views import ViewRecipe, ViewSpec, identity_recipe
from shards.stats import Stats
from train.loader.params import N_PARAMS, pack_params
from train.loader.ring import GARBAGE_HU, SlotRing
from train.loader.slots import SlotLayout

pytest.importorskip("nvidia.dali")

CHUNK = 32
SIDE = 66
SHAPE = (4, 4, 4, CHUNK, CHUNK, CHUNK)
VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(40.0, 66.0), count=2),
    local=ViewSpec(size=33, extent=(12.0, 50.0), count=3),
    box_side=SIDE,
)
OPTIONS: dict[str, Any] = {
    "rotate_p": 0.5,
    "rotate_deg": 15.0,
    "blur_p": 0.5,
    "blur_sigma": (0.3, 1.5),
    "noise_p": 0.5,
    "noise_sd": (0.01, 0.05),
}
"""Half of the views each, so that batches are taken apart."""
RECIPES = {
    "plain": VIEWS,
    "all options": replace(VIEWS, **OPTIONS),
    "every view": replace(VIEWS, **OPTIONS | {"rotate_p": 1.0, "blur_p": 1.0, "noise_p": 1.0}),
    # One global view, as many sizes as there may be, far turns, half a box of blur.
    "odd": replace(
        VIEWS,
        **OPTIONS | {"rotate_deg": 90.0, "blur_sigma": (2.0, 9.0)},
        global_=ViewSpec(size=64, extent=(30.0, 66.0), count=1),
        local=ViewSpec(size=47, extent=(20.0, 66.0), count=1),
    ),
    "one of each": replace(
        VIEWS,
        **OPTIONS | {"blur_p": 1.0, "noise_p": 1.0},
        global_=ViewSpec(size=64, extent=(40.0, 66.0), count=1),
        local=ViewSpec(size=33, extent=(12.0, 50.0), count=1),
    ),
    "same sizes": replace(
        VIEWS, **OPTIONS, local=ViewSpec(size=64, extent=(20.0, 66.0), count=1), whole_voxels=False
    ),
}
IDENTITY = replace(
    identity_recipe(global_size=64, local_size=33, box_side=SIDE),
    local=ViewSpec(size=33, extent=(33, 33), count=3),
)
ORIGINS = [np.array([0, 31, 17]), np.array([5, 0, 31])]

RESAMPLED_TOLERANCE = 5e-4
"""float32 positions are off by some 1e-5 voxel; with noise of 2500 HU between neighbours, a window
of 400 HU or more, and a gamma of 0.8 near 0, a view is off by at most this."""
TOLERANCES = {
    "float32": RESAMPLED_TOLERANCE,
    "float16": RESAMPLED_TOLERANCE + 2**-12,
    "bfloat16": RESAMPLED_TOLERANCE + 2**-9,
}
"""And half a unit in the last place below 1."""

CHANGES = {
    "start_zyx": lambda value: value + 0.5,
    "extent_zyx": lambda value: value * 0.9,
    "angles_zyx": lambda value: value + 0.02,
    "flip_zyx": lambda value: ~value,
    "low_hu": lambda value: value - 50.0,
    "high_hu": lambda value: value + 50.0,
    "gain": lambda value: value * 0.9,
    "offset": lambda value: value + 0.02,
    "gamma": lambda value: value * 1.1,
    "blur_sigma": lambda value: value + 0.1,
    "noise_sd": lambda value: value + 0.01,
    "noise_start_zyx": lambda value: value + 1,
}


def without_options(draw: ViewDraws) -> ViewDraws:
    nothing = {name: 0 * getattr(draw, name) for name in ("angles_zyx", "blur_sigma", "noise_sd")}
    return replace(draw, **nothing)


def layout(views: ViewRecipe) -> SlotLayout:
    return SlotLayout(chunks_shape=SHAPE, params_shape=(views.n_views, N_PARAMS))


@pytest.fixture(scope="module")
def region():
    """White noise, HU: the hardest thing to interpolate."""
    return np.random.default_rng(1).integers(-1024, 1500, (4 * CHUNK,) * 3).astype(np.int16)


def render(
    region, views, *, resampler="resize", precision="float32", device="cpu", seed=5, change=None
):
    """One batch of two sets; gives the draws, the boxes, and per set the list of its views."""
    from train.loader.renderer import DaliRenderer

    rng = np.random.default_rng(seed)
    ring = SlotRing(
        n_slots=2,
        layout=layout(views),
        pinned=device == "gpu",
    )
    slots = [ring.wait() for _ in ORIGINS]
    draws = [draw_views(views, rng.random(views.n_uniforms)) for _ in ORIGINS]
    if change is not None:
        draws = [change(draw) for draw in draws]
    for slot, draw, origin in zip(slots, draws, ORIGINS, strict=True):
        n = SHAPE[0]
        slot.chunks[:] = region.reshape(n, CHUNK, n, CHUNK, n, CHUNK).transpose(0, 2, 4, 1, 3, 5)
        slot.params[:] = pack_params(draw, origin.astype(np.float64), views.sizes, resampler)
    renderer = DaliRenderer(
        views=views,
        chunks_shape=SHAPE,
        batch_size=len(slots),
        pull=lambda: slots,
        device=device,
        resampler=resampler,
        precision=precision,
    )
    groups, _ = renderer.render((views.global_.count, views.local.count))
    assert {group.dtype for group in groups} == {getattr(torch, precision)}
    assert {group.device.type for group in groups} == {"cuda" if device == "gpu" else "cpu"}
    groups = [group.float().cpu().numpy()[:, 0] for group in groups]
    renderer.close()
    by_set = [[view for group in groups for view in group[n::2]] for n in range(2)]
    boxes = [region[tuple(slice(o, o + SIDE) for o in origin)] for origin in ORIGINS]
    return draws, boxes, by_set


def assert_equal_to_reference(region, views, tolerance, **how):
    draws, boxes, by_set = render(region, views, **how)
    for draw, box, found in zip(draws, boxes, by_set, strict=True):
        for got, expected in zip(found, render_set(box, views.sizes, draw), strict=True):
            np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0)
    return draws


@pytest.mark.parametrize("resampler", ["resize", "affine"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_views_equal_the_reference(region, recipe, resampler):
    draws = assert_equal_to_reference(
        region, RECIPES[recipe], RESAMPLED_TOLERANCE, resampler=resampler
    )
    assert {bool(flip) for draw in draws for flip in draw.flip_zyx.ravel()} == {True, False}


@pytest.mark.parametrize("resampler", ["resize", "affine"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_short_floats_are_the_reference_rounded(region, precision, resampler):
    draws = assert_equal_to_reference(
        region,
        RECIPES["all options"],
        TOLERANCES[precision],
        resampler=resampler,
        precision=precision,
    )
    for name in ("angles_zyx", "blur_sigma", "noise_sd"):
        values = np.concatenate([getattr(draw, name) for draw in draws])
        assert {bool(value) for value in values.ravel()} == {True, False}


@pytest.fixture(scope="module")
def before(region):
    return render(region, RECIPES["one of each"])[-1]


@pytest.mark.parametrize("option", [field.name for field in fields(ViewDraws)])
def test_no_parameter_is_dropped_on_the_way(region, before, option):
    """Changed in the draws, each changes every view by far more than the tolerance."""

    def change(draw):
        return replace(draw, **{option: CHANGES[option](getattr(draw, option))})

    *_, after = render(region, RECIPES["one of each"], change=change)
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old, new, strict=True):
            assert np.abs(one - other).max() > 10 * RESAMPLED_TOLERANCE


def test_what_is_not_drawn_is_not_done(region):
    """A view beside others that are turned, blurred and noisy is to the bit what it is alone."""
    recipe = replace(VIEWS, **OPTIONS | {"rotate_p": 0.3, "blur_p": 0.3, "noise_p": 0.3})
    draws, _, mixed = render(region, recipe)
    *_, plain = render(region, recipe, change=without_options)
    untouched = [
        (got, alone)
        for draw, views, others in zip(draws, mixed, plain, strict=True)
        for n, (got, alone) in enumerate(zip(views, others, strict=True))
        if not (draw.turned[n] or draw.blur_sigma[n] or draw.noise_sd[n])
    ]
    assert untouched
    for got, alone in untouched:
        np.testing.assert_array_equal(got, alone)


def test_only_bfloat16_costs_a_pass(region):
    from train.loader.renderer import DaliRenderer

    voxels = 2 * (2 * 64**3 + 3 * 33**3)
    for precision, written in (("float16", 0), ("float32", 0), ("bfloat16", 2 * voxels)):
        slots, stats = SlotRing(n_slots=2, layout=layout(VIEWS)), Stats()
        pulled = [slots.wait(), slots.wait()]
        for slot in pulled:
            slot.params[:] = 1.0
        renderer = DaliRenderer(
            views=VIEWS,
            chunks_shape=SHAPE,
            batch_size=2,
            pull=lambda pulled=pulled: pulled,
            device="cpu",
            resampler="resize",
            precision=precision,
            stats=stats,
        )
        renderer.render((2, 3))
        renderer.close()
        assert stats.counters()["bytes_joined"] == written


@pytest.mark.parametrize("resampler", ["resize", "affine"])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_identity_is_the_windowed_crop_exactly(region, resampler, flips):
    recipe = replace(IDENTITY, flip_p_zyx=tuple(float(flip) for flip in flips))
    draws, boxes, by_set = render(region, recipe, resampler=resampler, precision="float32")
    mirror = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    for draw, box, views in zip(draws, boxes, by_set, strict=True):
        for n, (got, size) in enumerate(zip(views, recipe.sizes, strict=True)):
            start = draw.start_zyx[n].astype(int)
            crop = box[tuple(slice(s, s + size) for s in start)][mirror].astype(np.float32)
            np.testing.assert_array_equal(got, np.clip((crop + 1000) / 2000, 0, 1))


@pytest.mark.parametrize("resampler", ["resize", "affine"])
def test_nothing_outside_the_box_reaches_a_view(region, resampler):
    """Voxels around the box may be anything: decoded neighbours, stale chunks, fill."""
    recipe = RECIPES["all options"]
    *_, expected = render(region, recipe, resampler=resampler)
    for number, origin in enumerate(ORIGINS):
        spoilt = np.full_like(region, GARBAGE_HU)
        inside = tuple(slice(o, o + SIDE) for o in origin)
        spoilt[inside] = region[inside]
        *_, got = render(spoilt, recipe, resampler=resampler)
        for clean, dirty in zip(expected[number], got[number], strict=True):
            # At the box's very edge a position off by 1e-5 voxel takes that share of the neighbour.
            np.testing.assert_allclose(dirty, clean, atol=3e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("resampler", ["affine", "resize"])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_views_equal_the_reference_on_the_gpu(region, recipe, precision, resampler):
    # GPU interpolation orders its sums differently, and its pow is approximate.
    assert_equal_to_reference(
        region,
        RECIPES[recipe],
        2 * TOLERANCES[precision],
        resampler=resampler,
        precision=precision,
        device="gpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("resampler", ["affine", "resize"])
def test_identity_is_the_windowed_crop_on_the_gpu(region, resampler):
    draws, boxes, by_set = render(region, IDENTITY, resampler=resampler, device="gpu")
    for draw, box, views in zip(draws, boxes, by_set, strict=True):
        for n, (got, size) in enumerate(zip(views, IDENTITY.sizes, strict=True)):
            start = draw.start_zyx[n].astype(int)
            crop = box[tuple(slice(s, s + size) for s in start)].astype(np.float32)
            np.testing.assert_allclose(got, np.clip((crop + 1000) / 2000, 0, 1), atol=1e-6)
