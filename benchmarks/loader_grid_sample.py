"""Views by torch alone, as batchaug makes them: all of one size in one affine ``grid_sample``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from coralbay.views import ViewRecipe
from train.loader.feed import Loaded
from train.loader.params import GAIN, GAMMA, LOW_HU, N_WINDOW, OFFSET, WIDTH_HU


class GridSampleRenderer:
    """Same interface as ``train.loader.renderer.DaliRenderer``; slots packed for ``affine``.

    Args:
        views: what to render; no blur and no noise.
        pull: gives the items of the next batch.
        device: where.
    """

    def __init__(
        self, views: ViewRecipe, pull: Callable[[], Sequence[Loaded]], device: torch.device
    ) -> None:
        if views.blur_p or views.noise_p:
            raise ValueError("views by grid_sample have neither blur nor noise")
        self._views = views
        self._pull = pull
        self._device = device

    @torch.no_grad()
    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], None]:
        """The next batch, ``(count * batch, 1, d, h, w)`` for each count, view-major, float16."""
        batch = self._pull()
        regions = torch.stack([self._region(loaded) for loaded in batch])
        params = torch.stack([torch.from_numpy(loaded.slot.params) for loaded in batch])
        params = params.to(self._device, non_blocking=True)
        groups, first = [], 0
        for count in counts:
            size = self._views.sizes[first]
            groups.append(self._group(regions, params[:, first : first + count], size))
            first += count
        return groups, None

    def close(self) -> None:
        """Nothing to free."""

    def _region(self, loaded: Loaded) -> torch.Tensor:
        """Chunk-major int16 to (1, z, y, x) float32, on the device."""
        chunks = torch.from_numpy(loaded.slot.chunks).to(self._device, non_blocking=True)
        nz, ny, nx, cz, cy, cx = chunks.shape
        volume = chunks.permute(0, 3, 1, 4, 2, 5).reshape(1, nz * cz, ny * cy, nx * cx)
        return volume.to(torch.float32)

    def _group(self, regions: torch.Tensor, params: torch.Tensor, size: int) -> torch.Tensor:
        """All views of one size; ``params`` is (batch, views, parameters)."""
        batch, count, _ = params.shape
        theta = _theta(params[..., :N_WINDOW].reshape(-1, 3, 4), regions.shape[2:], size)
        grid = functional.affine_grid(theta, [len(theta), 1, size, size, size], align_corners=False)
        # The views of a set one below the other: each region is read where it lies.
        grid = grid.view(batch, count * size, size, size, 3)
        hu = functional.grid_sample(regions, grid, padding_mode="border", align_corners=False)
        hu = hu.view(batch, count, size, size, size)

        def of(column: int) -> torch.Tensor:
            return params[..., column, None, None, None]

        value = ((hu - of(LOW_HU)) / of(WIDTH_HU)).clamp_(0.0, 1.0).pow_(of(GAMMA))
        value = value.mul_(of(GAIN)).add_(of(OFFSET)).clamp_(0.0, 1.0).to(torch.float16)
        return value.transpose(0, 1).reshape(count * batch, 1, size, size, size)


def _theta(matrices: torch.Tensor, shape_zyx: Any, size: int) -> torch.Tensor:
    """From voxels (x, y, z), where voxel i covers [i, i + 1), to torch's range of -1 to 1."""
    sides = torch.tensor(list(shape_zyx)[::-1], dtype=torch.float32, device=matrices.device)
    to_source = (2.0 / sides)[:, None]
    turn = matrices[:, :, :3] * (size / 2.0)
    shift = turn.sum(dim=2) + matrices[:, :, 3]
    return torch.cat([turn * to_source, shift[:, :, None] * to_source - 1.0], dim=2)
