"""Plain crops at whole voxels, cut straight out of the decoded chunks, without DALI or a GPU.

For those who augment by themselves: nothing is resampled, and no region is put together first. With
``precision="int16"`` a view is HU as stored; as floats it is windowed as the reference does it, to
the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64, Int16
from numpy import ndarray

from coralbay.draws import ViewDraws
from coralbay.views import ViewRecipe, identity_recipe
from train.errors import UsageError
from train.loader.feed import Loaded


class SliceRenderer:
    """Cuts views on the CPU. Same interface as ``renderer.DaliRenderer``.

    Args:
        views: what to cut: mirroring aside, it leaves voxels where and as they are.
        pull: gives the items of the next batch.
        dtype: of the views; int16: HU, else windowed to [0, 1].

    Raises:
        UsageError: the recipe resamples or changes values.
    """

    def __init__(
        self, *, views: ViewRecipe, pull: Callable[[], Sequence[Loaded]], dtype: torch.dtype
    ) -> None:
        if not is_plain(views):
            raise UsageError(
                "loader slices: it cuts whole voxels, and this recipe zooms or changes values; "
                "use dali or reference"
            )
        self._views = views
        self._pull = pull
        self._dtype = dtype

    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], None]:
        """The next batch, ``(count * batch, 1, d, h, w)`` for each count, view-major."""
        batch = self._pull()
        groups, first = [], 0
        for count in counts:
            side = self._views.sizes[first]
            group = torch.empty((count * len(batch), 1, side, side, side), dtype=self._dtype)
            for view, (place, loaded) in itertools.product(range(count), enumerate(batch)):
                self._render(loaded, first + view, group[view * len(batch) + place, 0])
            groups.append(group)
            first += count
        return groups, None

    def close(self) -> None:
        """Nothing to free."""

    def _render(self, loaded: Loaded, view: int, out: torch.Tensor) -> None:
        draws = loaded.visit.draws
        start = draws.start_zyx[view] + loaded.visit.region.origin_zyx
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in draws.flip_zyx[view])
        hu = out if out.dtype == torch.int16 else torch.empty(out.shape, dtype=torch.int16)
        cut(loaded.slot.chunks, start, hu.numpy()[flips])
        if hu is not out:
            out.copy_(_windowed(hu, draws, view))


def is_plain(views: ViewRecipe) -> bool:
    """Whether every view is a crop at whole voxels, maybe mirrored, its values untouched."""
    plain = replace(
        identity_recipe(),
        global_=replace(views.global_, extent=(views.global_.size,) * 2),
        local=replace(views.local, extent=(views.local.size,) * 2),
        box_side=views.box_side,
        flip_p_zyx=views.flip_p_zyx,
    )
    return views == plain


def cut(
    chunks: Int16[ndarray, "nz ny nx c c c"],
    start: Float64[ndarray, " 3"],
    out: Int16[ndarray, "d h w"],
) -> None:
    """Copy the crop that starts at voxel ``start`` of the region out of its chunks."""
    axes = (
        list(_spans(int(first), length, chunks.shape[3]))
        for first, length in zip(start.tolist(), out.shape, strict=True)
    )
    for (z, from_z, to_z), (y, from_y, to_y), (x, from_x, to_x) in itertools.product(*axes):
        out[to_z, to_y, to_x] = chunks[z, y, x, from_z, from_y, from_x]


def _spans(first: int, length: int, side: int) -> Iterator[tuple[int, slice, slice]]:
    """For each chunk along an axis: its number, what of it is wanted, and where that goes."""
    for number in range(first // side, (first + length - 1) // side + 1):
        low, high = max(first, number * side), min(first + length, (number + 1) * side)
        yield (
            number,
            slice(low - number * side, high - number * side),
            slice(low - first, high - first),
        )


def _windowed(hu: torch.Tensor, draws: ViewDraws, view: int) -> torch.Tensor:
    """``coralbay.augment.window``, in float32."""
    low, high = (
        torch.tensor(end[view], dtype=torch.float32) for end in (draws.low_hu, draws.high_hu)
    )
    return hu.to(torch.float32).sub_(low).div_(high - low).clamp_(0.0, 1.0)
