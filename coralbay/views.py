"""The crop recipe as data, and the pure sampling of views from uniforms.

A training sample is a *base box*, a cube cut from a volume at voxel precision. All views of a set
lie inside it, so that global and local views share content. A view is a *source window* in the box,
turned, resampled to a cube of fixed size, mirrored, HU-windowed, jittered, blurred and made noisy;
``augment`` says what the numbers mean voxel by voxel. Random numbers are passed in: the same
uniforms give the same views on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from coralbay.noise import bank_side
from coralbay.placement import Around, keep_to_volume
from coralbay.rotation import rotation_matrices

MAX_COLLAPSED_SIDE = 32
"""Views this small or smaller are one voxel wide at the deepest level, where an instance norm has
nothing to normalise over; the next larger side works."""

GLOBAL_STRIDE = 32
"""Global sides are whole multiples of the backbone's total stride."""

MIN_GLOBAL_SIDE = 64
"""Two strides: the deepest map of a global view keeps 2³ voxels."""

N_FIRST = 16
"""Uniforms of a view in the first block of a draw, in this order: common extent (1), extent ratios
(3), start (3), flips (3), window drawn or not (1), window ends (2), gain (1), offset (1), gamma
(1). The blocks stand one after another, (views, words) each, so that a block added later leaves the
words of those before it as they are."""

N_SECOND = 11
"""Those of the second block: turned or not (1), angles (3), blurred or not (1), sigma (1), noisy or
not (1), standard deviation (1), place in the noise bank (3)."""

MAX_BLUR_SIGMA = 10.0
"""Kernels of three sigmas then stay below the smallest view."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """One kind of view.

    Attributes:
        size: side of the view that the network sees, voxels.
        extent: smallest and largest side of the source window, voxels of the base box.
        count: views of this kind in a set.
    """

    size: int
    extent: tuple[float, float]
    count: int

    def __post_init__(self) -> None:
        if self.size <= MAX_COLLAPSED_SIDE:
            raise ValueError(
                f"view size {self.size}: sides of {MAX_COLLAPSED_SIDE} voxels or fewer collapse "
                f"to one voxel in the backbone; use {MAX_COLLAPSED_SIDE + 1} or more"
            )
        low, high = self.extent
        if not 1 <= low <= high:
            raise ValueError(f"view extent {self.extent}: give (low, high) with 1 <= low <= high")
        if self.count < 1:
            raise ValueError(f"view count {self.count}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """How the views of one set are drawn from a base box.

    Attributes:
        global_: views that teacher and student see.
        local: views that the student alone sees.
        box_side: side of the base box, voxels.
        extent_jitter: an axis' extent is the common extent times a ratio drawn from
            ``[1 / (1 + extent_jitter), 1 + extent_jitter]``, kept within the spec's extent.
        whole_voxels: extents and starts are whole voxels (so a view with extent == size is a plain
            crop).
        flip_p_zyx: probability of mirroring each axis.
        window_p: probability of a drawn HU window; otherwise the window is ``fixed_window_hu``.
        low_hu: range of the drawn window's lower end.
        high_hu: range of the drawn window's upper end.
        fixed_window_hu: lower and upper end when no window is drawn.
        gain: range of the factor on the windowed value (contrast).
        offset: range of the term added to it (brightness).
        gamma: range of the exponent, log-uniform, so that brightening and darkening balance.
        rotate_p: probability of turning the source window about its centre.
        rotate_deg: one angle for each axis, uniform in ±rotate_deg. A turned window that does not
            fit is made smaller, if need be than the spec's extent.
        blur_p: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, voxels of the view.
        noise_p: probability of Gaussian noise, independent from voxel to voxel of the view.
        noise_sd: range of its standard deviation; the view's values lie in [0, 1].
    """

    global_: ViewSpec
    local: ViewSpec
    box_side: int
    extent_jitter: float = 0.1
    whole_voxels: bool = False
    flip_p_zyx: tuple[float, float, float] = (0.5, 0.5, 0.5)
    window_p: float = 0.5
    low_hu: tuple[float, float] = (-1000.0, -200.0)
    high_hu: tuple[float, float] = (200.0, 1000.0)
    fixed_window_hu: tuple[float, float] = (-1000.0, 1000.0)
    gain: tuple[float, float] = (0.9, 1.1)
    offset: tuple[float, float] = (-0.05, 0.05)
    gamma: tuple[float, float] = (0.8, 1.25)
    # Off unless asked for: settings written down before these existed mean the same views as then.
    rotate_p: float = 0.0
    rotate_deg: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.0, 0.0)
    noise_p: float = 0.0
    noise_sd: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        size = self.global_.size
        if size % GLOBAL_STRIDE or size < MIN_GLOBAL_SIDE:
            raise ValueError(
                f"global view size {size}: use a multiple of {GLOBAL_STRIDE}, "
                f"{MIN_GLOBAL_SIDE} or more"
            )
        for name, spec in (("global", self.global_), ("local", self.local)):
            if spec.extent[1] > self.box_side:
                raise ValueError(
                    f"{name} view extent up to {spec.extent[1]}: larger than the base box of side "
                    f"{self.box_side}; use a larger box or a smaller extent"
                )
            if spec.size > self.box_side:
                raise ValueError(
                    f"{name} view size {spec.size}: larger than the base box of side "
                    f"{self.box_side}; use a larger box or a smaller view"
                )
        if self.low_hu[1] >= self.high_hu[0]:
            raise ValueError(
                f"HU windows low {self.low_hu}, high {self.high_hu}: "
                "every low end must lie below every high end"
            )
        if self.gamma[0] <= 0 or self.extent_jitter < 0:
            raise ValueError("gamma must be positive and extent_jitter must not be negative")
        _check_options(self)

    @property
    def n_uniforms(self) -> int:
        """Uniforms that a set consumes."""
        return self.n_views * (N_FIRST + N_SECOND)

    @property
    def n_views(self) -> int:
        """Views in a set, globals first."""
        return self.global_.count + self.local.count

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view of a set, globals first."""
        return (self.global_.size,) * self.global_.count + (self.local.size,) * self.local.count


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


def identity_recipe(
    *, global_size: int = 64, local_size: int = 40, box_side: int = 65
) -> ViewRecipe:
    """Plain crops at whole voxels, never mirrored, windowed -1000…1000, values untouched.

    For tests and for finding faults: every view equals a slice of the box.
    """
    return ViewRecipe(
        global_=ViewSpec(size=global_size, extent=(global_size, global_size), count=2),
        local=ViewSpec(size=local_size, extent=(local_size, local_size), count=8),
        box_side=box_side,
        extent_jitter=0.0,
        whole_voxels=True,
        flip_p_zyx=(0.0, 0.0, 0.0),
        window_p=0.0,
        gain=(1.0, 1.0),
        offset=(0.0, 0.0),
        gamma=(1.0, 1.0),
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


def _check_options(recipe: ViewRecipe) -> None:
    """What may be off must be off or make sense.

    Raises:
        ValueError: it is neither.
    """
    for name in ("window_p", "rotate_p", "blur_p", "noise_p"):
        p = getattr(recipe, name)
        if not 0 <= p <= 1:
            raise ValueError(f"{name} {p}: give a probability, from 0 to 1")
    if recipe.rotate_p and not 0 < recipe.rotate_deg <= 180:
        raise ValueError(f"rotate_deg {recipe.rotate_deg}: give more than 0 and at most 180")
    if recipe.rotate_p and recipe.whole_voxels:
        raise ValueError("rotate_p: a turned window has no whole voxels; set whole_voxels to False")
    low, high = recipe.blur_sigma
    if recipe.blur_p and not 0 < low <= high <= MAX_BLUR_SIGMA:
        raise ValueError(
            f"blur_sigma {recipe.blur_sigma}: give (low, high) with 0 < low <= high <= "
            f"{MAX_BLUR_SIGMA:g}"
        )
    low, high = recipe.noise_sd
    if recipe.noise_p and not 0 < low <= high:
        raise ValueError(f"noise_sd {recipe.noise_sd}: give (low, high) with 0 < low <= high")
