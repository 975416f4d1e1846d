"""The crop recipe as data.

A training sample is a *base box*, a cube cut from a volume at voxel precision. All views of a set
lie inside it, so that global and local views share content. A view is a *source window* in the box,
turned, resampled to a cube of fixed size, mirrored, HU-windowed, jittered, blurred and made noisy;
``draws`` draws the numbers of each view, ``augment`` says what they mean voxel by voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

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
