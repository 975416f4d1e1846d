"""The pure sampling of views: from uniforms to the numbers of each view of a set.

Random numbers are passed in: the same uniforms give the same views on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from coralbay.noise import bank_side
from coralbay.placement import Around, keep_to_volume
from coralbay.rotation import rotation_matrices
from coralbay.views import N_FIRST, N_SECOND, ViewRecipe


@dataclass(frozen=True, kw_only=True)
class ViewDraws:
    """The parameters of one set of views, globals first; a row is a view.

    Attributes:
        start_zyx: corner of the source window in the base box before it is turned, voxels;
            continuous coordinates in which voxel i covers [i, i + 1).
        extent_zyx: sides of the source window; not turned, ``[start, start + extent)`` lies inside
            ``[0, box_side]``.
        angles_zyx: by how much the window is turned about its centre, radians, as
            ``rotation.rotation_matrices`` takes them; zeros: not turned.
        flip_zyx: axes of the window to mirror.
        low_hu: HU that becomes 0.
        high_hu: HU that becomes 1.
        gain: contrast factor.
        offset: brightness term.
        gamma: exponent.
        blur_sigma: standard deviation of the blur, voxels of the view; 0: not blurred.
        noise_sd: standard deviation of the noise; 0: none.
        noise_start_zyx: corner of the window of the noise bank that is added.
    """

    start_zyx: Float64[ndarray, "v 3"]
    extent_zyx: Float64[ndarray, "v 3"]
    angles_zyx: Float64[ndarray, "v 3"]
    flip_zyx: Bool[ndarray, "v 3"]
    low_hu: Float64[ndarray, " v"]
    high_hu: Float64[ndarray, " v"]
    gain: Float64[ndarray, " v"]
    offset: Float64[ndarray, " v"]
    gamma: Float64[ndarray, " v"]
    blur_sigma: Float64[ndarray, " v"]
    noise_sd: Float64[ndarray, " v"]
    noise_start_zyx: Int64[ndarray, "v 3"]

    @property
    def turned(self) -> Bool[ndarray, " v"]:
        """Which views are turned."""
        turned: Bool[ndarray, " v"] = np.any(self.angles_zyx != 0, axis=1)
        return turned

    def bounds_zyx(self) -> tuple[Float64[ndarray, "v 3"], Float64[ndarray, "v 3"]]:
        """First and last corner of the part of the box that holds each window, turned or not."""
        half = self.extent_zyx / 2
        reach = np.einsum("vij,vj->vi", np.abs(rotation_matrices(self.angles_zyx)), half)
        # Not start + half - reach: that would move the corner of a window that is not turned.
        return self.start_zyx + (half - reach), self.start_zyx + (half + reach)


def draw_views(
    recipe: ViewRecipe, uniforms: Float64[ndarray, " n"], around: Around | None = None
) -> ViewDraws:
    """Turn uniforms in [0, 1) into the view parameters of one set.

    Args:
        recipe: what to draw.
        uniforms: ``recipe.n_uniforms`` of them; ``N_FIRST`` says in which order.
        around: where the volume lies in the box; None: everywhere.

    Returns:
        One row a view, globals first.

    Raises:
        ValueError: not as many uniforms as the recipe takes.
    """
    if len(uniforms) != recipe.n_uniforms:
        raise ValueError(f"{len(uniforms)} uniforms: this recipe takes {recipe.n_uniforms}")
    n_first = recipe.n_views * N_FIRST
    first = uniforms[:n_first].reshape(recipe.n_views, N_FIRST)
    second = uniforms[n_first:].reshape(recipe.n_views, N_SECOND)
    common, ratios, starts, flips, drawn, low, high, gain, offset, gamma = np.split(
        first, [1, 4, 7, 10, 11, 12, 13, 14, 15], axis=1
    )
    turn, angles, blur, sigma, noise, sd, place = np.split(second, [1, 4, 5, 6, 7, 8], axis=1)
    angles_zyx = np.where(
        turn < recipe.rotate_p, np.deg2rad(recipe.rotate_deg) * (2.0 * angles - 1.0), 0.0
    )
    start_zyx, extent_zyx = _source_windows(recipe, common, ratios, starts, angles_zyx, around)
    low_hu, high_hu = _hu_windows(recipe, drawn[:, 0], low[:, 0], high[:, 0])
    sizes = np.asarray(recipe.sizes)[:, None]
    return ViewDraws(
        start_zyx=start_zyx,
        extent_zyx=extent_zyx,
        angles_zyx=angles_zyx,
        flip_zyx=flips < np.asarray(recipe.flip_p_zyx),
        low_hu=low_hu,
        high_hu=high_hu,
        gain=_between(recipe.gain, gain[:, 0]),
        offset=_between(recipe.offset, offset[:, 0]),
        gamma=recipe.gamma[0] * (recipe.gamma[1] / recipe.gamma[0]) ** gamma[:, 0],
        blur_sigma=_with_probability(recipe.blur_p, blur, _between(recipe.blur_sigma, sigma)),
        noise_sd=_with_probability(recipe.noise_p, noise, _between(recipe.noise_sd, sd)),
        noise_start_zyx=np.floor(place * (bank_side(recipe.sizes) - sizes)).astype(np.int64),
    )


def _source_windows(
    recipe: ViewRecipe,
    common: Float64[ndarray, "v 1"],
    ratios: Float64[ndarray, "v 3"],
    starts: Float64[ndarray, "v 3"],
    angles_zyx: Float64[ndarray, "v 3"],
    around: Around | None,
) -> tuple[Float64[ndarray, "v 3"], Float64[ndarray, "v 3"]]:
    """Place a nearly cubic window of drawn size uniformly inside the box."""
    specs = [recipe.global_] * recipe.global_.count + [recipe.local] * recipe.local.count
    smallest, largest = np.array([spec.extent for spec in specs], dtype=np.float64).T[:, :, None]
    extent = smallest + (largest - smallest) * common
    # Log-uniform around 1: stretching an axis and shrinking it are equally likely.
    extent = extent * (1.0 + recipe.extent_jitter) ** (2.0 * ratios - 1.0)
    extent = np.clip(extent, smallest, largest)
    if recipe.whole_voxels:
        extent = np.floor(extent)
    # When a window is enlarged, its outermost samples lie closer to its faces than half a voxel.
    # This margin keeps every sample between the centres of the box's outermost voxels, so that no
    # view depends on what lies outside its box, or on a rule for edges.
    margin = np.maximum(0.0, 0.5 - 0.5 * extent / np.asarray(recipe.sizes)[:, None])
    if recipe.whole_voxels:
        margin = np.ceil(margin)
        start = margin + np.floor(starts * (recipe.box_side - extent - 2.0 * margin + 1.0))
    else:
        if recipe.rotate_p:
            extent, margin = _fit_turned(recipe, extent, margin, angles_zyx)
        start = margin + starts * (recipe.box_side - extent - 2.0 * margin)
    if around is not None:
        start = keep_to_volume(start, extent, margin, recipe.box_side, around)
    return start, extent


def _fit_turned(
    recipe: ViewRecipe,
    extent: Float64[ndarray, "v 3"],
    margin: Float64[ndarray, "v 3"],
    angles_zyx: Float64[ndarray, "v 3"],
) -> tuple[Float64[ndarray, "v 3"], Float64[ndarray, "v 3"]]:
    """Extents with which turned windows fit the box, and the margin on each side that they need.

    The rule is that of windows along the axes: corners inside the box, samples between the centres
    of its outermost voxels. Both reach as far along an axis as the turned window's half sides do.
    """
    turned = angles_zyx.any(axis=1, keepdims=True)
    corners = np.einsum("vij,vj->vi", np.abs(rotation_matrices(angles_zyx)), extent / 2)
    samples = corners * (1.0 - 1.0 / np.asarray(recipe.sizes)[:, None])
    half_box = recipe.box_side / 2
    room = np.minimum(half_box / corners, (half_box - 0.5) / samples)
    shrink = np.minimum(1.0, room.min(axis=1, keepdims=True))
    reach = np.minimum(half_box, np.maximum(shrink * corners, shrink * samples + 0.5))
    return (
        np.where(turned, shrink * extent, extent),
        np.where(turned, reach - shrink * extent / 2, margin),
    )


def _hu_windows(
    recipe: ViewRecipe,
    drawn: Float64[ndarray, " v"],
    low: Float64[ndarray, " v"],
    high: Float64[ndarray, " v"],
) -> tuple[Float64[ndarray, " v"], Float64[ndarray, " v"]]:
    """Draw each view's HU window, or give it the fixed one."""
    is_drawn = drawn < recipe.window_p
    fixed_low, fixed_high = recipe.fixed_window_hu
    return (
        np.where(is_drawn, _between(recipe.low_hu, low), fixed_low),
        np.where(is_drawn, _between(recipe.high_hu, high), fixed_high),
    )


def _between(ends: tuple[float, float], uniform: Float64[ndarray, ...]) -> Float64[ndarray, ...]:
    """Map uniforms in [0, 1) to [low, high)."""
    low, high = ends
    return low + (high - low) * uniform


def _with_probability(
    p: float, uniform: Float64[ndarray, "v 1"], value: Float64[ndarray, "v 1"]
) -> Float64[ndarray, " v"]:
    """The value where it is drawn, else 0."""
    return np.where(uniform < p, value, 0.0)[:, 0]
