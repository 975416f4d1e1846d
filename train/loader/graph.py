"""The DALI graphs: slots in, views out. The same builders serve the CPU and the GPU.

One graph makes the regions of a batch. Then, for each kind of view, one graph makes all its views
at once: to that graph a sample is a view, so it has a dozen operators whatever the number of views,
its output is the tensor that training wants, and what a view does not need it is not put through.

Nothing random happens here: every parameter is drawn in Python and arrives as data, so resuming
needs no state of DALI's. Only this module and ``inflate`` import DALI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from nvidia.dali import Pipeline, fn, math, types

from coralbay.views import ViewRecipe
from train.loader import inflate
from train.loader.filling import DecodeOn
from train.loader.params import (
    BLUR_SIGMA,
    GAIN,
    GAMMA,
    LOW_HU,
    N_WINDOW,
    NOISE_SD,
    NOISE_START,
    OFFSET,
    TURNED,
    WIDTH_HU,
    Resampler,
)
from train.loader.slots import Slot

Device = Literal["cpu", "gpu"]

QUEUE_DEPTH = 2
"""Batches of views DALI holds: one being handed over, one being made."""

BANK = "bank"
"""Input of a graph of views that takes the noise bank; fed once."""


def build_regions(
    *,
    chunks_shape: tuple[int, ...],
    batch_size: int,
    pull: Callable[[], Sequence[Slot]],
    device: Device,
    decode_on: DecodeOn,
    threads: int,
) -> Any:
    """Build the graph from chunks to regions, ``(z, y, x, 1)`` a sample, HU.

    Args:
        chunks_shape: ``(nz, ny, nx, c, c, c)`` of a slot.
        batch_size: slots a run.
        pull: called once a run; gives the next ``batch_size`` slots, which must stay untouched
            until that run's output has been returned.
        device: where the regions are to be.
        decode_on: ``gpu`` if slots hold stored chunks.
        threads: CPU threads of DALI.
    """
    on_gpu = device == "gpu"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,  # outputs own their memory: they are not overwritten by the next run
    )
    with pipeline:
        if decode_on == "gpu":
            stored, table = fn.external_source(
                source=lambda: inflate.inputs(pull()),
                num_outputs=2,
                dtype=inflate.INPUT_TYPES,
                ndim=inflate.INPUT_NDIM,
                no_copy=True,
            )
            chunks = inflate.inflate(stored, table, chunks_shape)
        else:
            chunks = fn.external_source(
                source=lambda: [slot.chunks for slot in pull()],
                dtype=types.INT16,
                ndim=6,
                no_copy=True,
            )
            chunks = chunks.gpu() if on_gpu else chunks
        pipeline.set_outputs(_assemble(chunks, chunks_shape))
    pipeline.build()
    return pipeline


def _assemble(chunks: Any, chunks_shape: tuple[int, ...]) -> Any:
    """Chunk-major (nz, ny, nx, c, c, c) to one volume (z, y, x, 1)."""
    counts, sides = chunks_shape[:3], chunks_shape[3:]
    volume = fn.transpose(chunks, perm=[0, 3, 1, 4, 2, 5])
    shape = [count * side for count, side in zip(counts, sides, strict=True)]
    return fn.reshape(volume, shape=[*shape, 1], layout="DHWC")


def build_views(
    *,
    recipe: ViewRecipe,
    size: int,
    batch_size: int,
    regions: Callable[[], Any],
    params: Callable[[], Any],
    device: Device,
    resampler: Resampler,
    half: bool,
    threads: int,
) -> Any:
    """Build the graph from regions to views of one size, ``(d, h, w, 1)`` a sample, in [0, 1].

    Args:
        recipe: what can happen to a view.
        size: side of the views.
        batch_size: views a run.
        regions: called once a run; gives the region of each view, on the device. They must stay
            untouched until that run's output has been returned.
        params: called once a run; gives the parameters of each view, ``(batch_size, N_PARAMS)``.
        device: where all of it runs.
        resampler: which operator resamples views that are not turned.
        half: float16 instead of float32.
        threads: CPU threads of DALI.
    """
    on_gpu = device == "gpu"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_dynamic=True,
    )
    with pipeline:
        region = fn.external_source(
            source=regions, device=device, dtype=types.INT16, layout="DHWC", no_copy=True
        )
        row = fn.external_source(source=params, dtype=types.FLOAT, ndim=1)
        hu = _resample(region, row, size, resampler, turns=recipe.rotate_p > 0)
        value = _jitter(hu, row.gpu() if on_gpu else row)
        if recipe.blur_p:
            value = _where(row[BLUR_SIGMA], _blur, _nothing, value, row)
        if recipe.noise_p:
            add_noise = partial(_add_noise, size)
            value = _where(row[NOISE_SD], add_noise, _nothing, value, row, _bank(device))
        value = math.clamp(value, 0.0, 1.0)
        pipeline.set_outputs(fn.cast(value, dtype=types.FLOAT16) if half else value)
    pipeline.build()
    return pipeline


def _where(
    value: Any, then: Callable[..., Any], otherwise: Callable[..., Any], *inputs: Any
) -> Any:
    """Put views through ``then`` where a value of theirs is above 0, else through ``otherwise``.

    A batch is taken apart and put together again without copying anything. These are the operators
    behind the ``if`` of DALI's ``enable_conditionals``. The ``if`` itself rewrites the functions it
    stands in: it cannot see through decorators, and leaves files behind when a program is killed.
    """
    operators: Any = fn._conditional  # type: ignore[attr-defined]
    predicate = value > 0.0
    parts = [operators.split(one, predicate=predicate, _if_stmt=True) for one in inputs]
    return operators.merge(
        then(*(yes for yes, _ in parts)), otherwise(*(no for _, no in parts)), predicate=predicate
    )


def _nothing(value: Any, *_: Any) -> Any:
    return value


def _resample(region: Any, row: Any, size: int, resampler: Resampler, *, turns: bool) -> Any:
    """Crop, zoom, mirror and turn in one pass."""
    common = {"size": [size] * 3, "interp_type": types.INTERP_LINEAR, "dtype": types.FLOAT}

    def warp(region: Any, row: Any) -> Any:
        matrix = fn.reshape(row[0:N_WINDOW], shape=[3, 4])
        return fn.warp_affine(region, matrix=matrix, inverse_map=True, **common)

    def resize(region: Any, row: Any) -> Any:
        # A mirrored axis is a window that runs backwards. Without antialiasing, as warp_affine has
        # none and the reference neither.
        return fn.resize(region, roi_start=row[0:3], roi_end=row[3:6], antialias=False, **common)

    if resampler == "affine":
        return warp(region, row)
    if not turns:
        return resize(region, row)
    return _where(row[TURNED], warp, resize, region, row)


def _jitter(hu: Any, row: Any) -> Any:
    """``coralbay.augment.window`` and ``jitter``, operator by operator."""
    windowed = math.clamp((hu - row[LOW_HU]) / row[WIDTH_HU], 0.0, 1.0)
    return math.pow(windowed, row[GAMMA]) * row[GAIN] + row[OFFSET]


def _blur(value: Any, row: Any) -> Any:
    return fn.gaussian_blur(value, sigma=row[BLUR_SIGMA])


def _bank(device: Device) -> Any:
    return fn.external_source(
        name=BANK, device=device, dtype=types.FLOAT16, ndim=3, no_copy=True, repeat_last=True
    )


def _add_noise(size: int, value: Any, row: Any, bank: Any) -> Any:
    """Add a window of the bank, as strong as asked for."""
    start = fn.cast(row[NOISE_START : NOISE_START + 3], dtype=types.INT32)
    noise = fn.slice(bank, start=start, shape=[size] * 3, axes=[0, 1, 2], dtype=types.FLOAT)
    noise = fn.reshape(noise, shape=[size, size, size, 1], layout="DHWC")
    return value + noise * row[NOISE_SD]
