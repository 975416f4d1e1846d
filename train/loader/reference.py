"""The same batches by ``coralbay.augment``: for machines without DALI, and to check the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int16
from numpy import ndarray

from coralbay.augment import render_set
from coralbay.views import ViewRecipe
from train.loader.feed import Loaded


class ReferenceRenderer:
    """Renders on the CPU, view by view. Same interface as ``renderer.DaliRenderer``.

    Args:
        views: what to render.
        pull: gives the items of the next batch.
        device: where the tensors go.
        dtype: of the tensors.
    """

    def __init__(
        self,
        *,
        views: ViewRecipe,
        pull: Callable[[], Sequence[Loaded]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._views = views
        self._pull = pull
        self._device = device
        self._dtype = dtype

    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], None]:
        """The next batch, ``(count * batch, 1, d, h, w)`` for each count, view-major."""
        sets = [
            render_set(
                base_box(loaded, self._views.box_side), self._views.sizes, loaded.visit.draws
            )
            for loaded in self._pull()
        ]
        by_view = list(zip(*sets, strict=True))
        groups, first = [], 0
        for count in counts:
            same_size = [view for views in by_view[first : first + count] for view in views]
            tensor = torch.from_numpy(np.stack(same_size)[:, None])
            groups.append(tensor.to(self._device, self._dtype))
            first += count
        return groups, None

    def close(self) -> None:
        """Nothing to free."""


def base_box(loaded: Loaded, side: int) -> Int16[ndarray, "s s s"]:
    """Cut the base box out of a slot's chunks."""
    chunks = loaded.slot.chunks
    shape = [n * c for n, c in zip(chunks.shape[:3], chunks.shape[3:], strict=True)]
    region = chunks.transpose(0, 3, 1, 4, 2, 5).reshape(shape)
    z, y, x = loaded.visit.region.origin_zyx.astype(int).tolist()
    return region[z : z + side, y : y + side, x : x + side]
