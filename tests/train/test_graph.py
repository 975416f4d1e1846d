"""The DALI graph against the plain reference, and against slices where nothing is resampled."""

from dataclasses import replace

import numpy as np
import pytest

from coralbay.augment import render_set
from coralbay.views import N_UNIFORMS, ViewRecipe, ViewSpec, draw_views, identity_recipe
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
IDENTITY = replace(
    identity_recipe(global_size=64, local_size=33, box_side=SIDE),
    local=ViewSpec(size=33, extent=(33, 33), count=3),
)
ORIGINS = [np.array([0, 31, 17]), np.array([5, 0, 31])]

RESAMPLED_TOLERANCE = 5e-4
"""float32 positions are off by some 1e-5 voxel; with noise of 2500 HU between neighbours, a window
of 400 HU or more, and a gamma of 0.8 near 0, a view is off by at most this."""
HALF_TOLERANCE = RESAMPLED_TOLERANCE + 2**-12
"""And half a unit in the last place of float16 below 1."""


@pytest.fixture(scope="module")
def region():
    """White noise, HU: the hardest thing to interpolate."""
    return np.random.default_rng(1).integers(-1024, 1500, (4 * CHUNK,) * 3).astype(np.int16)


def render(region, views, *, resampler, precision, device="cpu", seed=5):
    """One batch of two sets; gives the draws, the boxes, and per set the list of its views."""
    from train.loader.graph import DaliRenderer

    rng = np.random.default_rng(seed)
    ring = SlotRing(
        n_slots=2,
        layout=SlotLayout(chunks_shape=SHAPE, params_shape=(views.n_views, N_PARAMS)),
        pinned=device == "gpu",
    )
    slots = [ring.wait() for _ in ORIGINS]
    draws = [draw_views(views, rng.random((views.n_views, N_UNIFORMS))) for _ in ORIGINS]
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
    groups = [group.float().cpu().numpy()[:, 0] for group in groups]
    renderer.close()
    by_set = [[view for group in groups for view in group[n::2]] for n in range(2)]
    boxes = [region[tuple(slice(o, o + SIDE) for o in origin)] for origin in ORIGINS]
    return draws, boxes, by_set


@pytest.mark.parametrize("resampler", ["resize", "affine"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", RESAMPLED_TOLERANCE), ("float16", HALF_TOLERANCE)]
)
def test_views_equal_the_reference(region, resampler, precision, tolerance):
    draws, boxes, by_set = render(region, VIEWS, resampler=resampler, precision=precision)
    assert {bool(flip) for draw in draws for flip in draw.flip_zyx.ravel()} == {True, False}
    for draw, box, views in zip(draws, boxes, by_set, strict=True):
        for got, expected in zip(views, render_set(box, VIEWS.sizes, draw), strict=True):
            np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0)


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
    *_, expected = render(region, VIEWS, resampler=resampler, precision="float32")
    for number, origin in enumerate(ORIGINS):
        spoilt = np.full_like(region, GARBAGE_HU)
        inside = tuple(slice(o, o + SIDE) for o in origin)
        spoilt[inside] = region[inside]
        *_, got = render(spoilt, VIEWS, resampler=resampler, precision="float32")
        for clean, dirty in zip(expected[number], got[number], strict=True):
            # At the box's very edge a position off by 1e-5 voxel takes that share of the neighbour.
            np.testing.assert_allclose(dirty, clean, atol=3e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("resampler", ["affine", "resize"])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_views_equal_the_reference_on_the_gpu(region, resampler, precision):
    draws, boxes, by_set = render(
        region, VIEWS, resampler=resampler, precision=precision, device="gpu"
    )
    for draw, box, views in zip(draws, boxes, by_set, strict=True):
        for got, expected in zip(views, render_set(box, VIEWS.sizes, draw), strict=True):
            # GPU interpolation orders its sums differently, and its pow is approximate.
            np.testing.assert_allclose(got, expected, atol=2 * HALF_TOLERANCE, rtol=0)
