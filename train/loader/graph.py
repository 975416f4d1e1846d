"""The DALI graph: slots in, views out. The same builder serves the CPU and the GPU.

Nothing random happens here: every parameter is drawn in Python and arrives as data, so resuming
needs no state of DALI's. Only this module and ``inflate`` import DALI.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from nvidia.dali import Pipeline, fn, math, types
from torch.utils.dlpack import from_dlpack

from coralbay.views import ViewRecipe
from train.loader import inflate
from train.loader.filling import DecodeOn
from train.loader.params import GAIN, GAMMA, LOW_HU, N_WINDOW, OFFSET, WIDTH_HU, Resampler
from train.loader.slots import Slot

Precision = Literal["float16", "float32"]
_DTYPES = {"float16": types.FLOAT16, "float32": types.FLOAT}

QUEUE_DEPTH = 2
"""Batches DALI holds: one being handed over, one being made."""


def build_graph(
    *,
    views: ViewRecipe,
    chunks_shape: tuple[int, ...],
    batch_size: int,
    pull: Callable[[], Sequence[Slot]],
    device: Literal["cpu", "gpu"],
    resampler: Resampler,
    decode_on: DecodeOn = "cpu",
    precision: Precision = "float16",
    threads: int = 2,
) -> Any:
    """Build the pipeline: one output a view, ``(d, h, w, 1)`` a sample, in [0, 1].

    Args:
        views: what to render.
        chunks_shape: ``(nz, ny, nx, c, c, c)`` of a slot.
        batch_size: slots a run.
        pull: called once a run, ``QUEUE_DEPTH`` runs ahead; gives the next ``batch_size`` slots,
            which must stay untouched until that run's output has been returned.
        device: where the resampling and everything after it runs.
        resampler: which operator resamples.
        decode_on: ``gpu`` if slots hold stored chunks.
        precision: of the outputs.
        threads: CPU threads of DALI.
    """
    on_gpu = device == "gpu"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_dynamic=True,  # outputs own their memory: they are not overwritten by the next run
    )

    inflating = decode_on == "gpu"

    def source() -> tuple[list[Any], ...]:
        slots = pull()
        chunks = inflate.inputs(slots) if inflating else ([slot.chunks for slot in slots],)
        return *chunks, [slot.params for slot in slots]

    with pipeline:
        *fed, params = fn.external_source(
            source=source,
            num_outputs=3 if inflating else 2,
            dtype=[*(inflate.INPUT_TYPES if inflating else [types.INT16]), types.FLOAT],
            ndim=[*(inflate.INPUT_NDIM if inflating else [6]), 2],
            no_copy=True,
        )
        if inflating:
            stored, table = fed
            chunks = inflate.inflate(stored, table, chunks_shape)
        else:
            chunks = fed[0].gpu() if on_gpu else fed[0]
        region = _assemble(chunks, chunks_shape)
        intensity = params.gpu() if on_gpu else params
        pipeline.set_outputs(
            *(
                fn.cast(
                    _adjust(_resample(region, params[view], size, resampler), intensity[view]),
                    dtype=_DTYPES[precision],
                )
                for view, size in enumerate(views.sizes)
            )
        )
    pipeline.build()
    return pipeline


def _assemble(chunks: Any, chunks_shape: tuple[int, ...]) -> Any:
    """Chunk-major (nz, ny, nx, c, c, c) to one volume (z, y, x, 1)."""
    counts, sides = chunks_shape[:3], chunks_shape[3:]
    volume = fn.transpose(chunks, perm=[0, 3, 1, 4, 2, 5])
    shape = [count * side for count, side in zip(counts, sides, strict=True)]
    return fn.reshape(volume, shape=[*shape, 1], layout="DHWC")


def _resample(region: Any, params: Any, size: int, resampler: Resampler) -> Any:
    """Crop, zoom and mirror in one pass; a mirrored axis is a window that runs backwards."""
    common = {
        "size": [size] * 3,
        "interp_type": types.INTERP_LINEAR,
        "dtype": types.FLOAT,
    }
    if resampler == "resize":
        # Without antialiasing, as warp_affine has none and the reference neither.
        return fn.resize(
            region, roi_start=params[0:3], roi_end=params[3:6], antialias=False, **common
        )
    matrix = fn.reshape(params[0:N_WINDOW], shape=[3, 4])
    return fn.warp_affine(region, matrix=matrix, inverse_map=True, **common)


def _adjust(hu: Any, params: Any) -> Any:
    """``coralbay.augment.adjust``, operator by operator."""
    windowed = math.clamp((hu - params[LOW_HU]) / params[WIDTH_HU], 0.0, 1.0)
    curved = math.pow(windowed, params[GAMMA])
    return math.clamp(curved * params[GAIN] + params[OFFSET], 0.0, 1.0)


class DaliRenderer:
    """Runs the graph and hands its outputs to torch.

    ``render`` gives the views of the oldest slots pulled, which may go once its event has passed.
    """

    def __init__(self, **graph: Any) -> None:
        self._gpu = graph["device"] == "gpu"
        self._pipeline = build_graph(**graph)
        self._outputs: deque[tuple[torch.cuda.Event, Any]] = deque()

    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        """The next batch.

        Args:
            counts: how many consecutive views form one tensor, e.g. ``(2, 8)``.

        Returns:
            A tensor ``(count * batch, 1, d, h, w)`` for each count, view-major, and the event after
            which the slots are not read any more (None: they are not already).
        """
        stream = torch.cuda.current_stream() if self._gpu else None
        outputs = self._pipeline.run(stream)
        views = [from_dlpack(output.as_tensor()) for output in outputs]
        groups = [_join(group) for group in _split(views, counts)]
        if not self._gpu:
            return groups, None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self._outputs.append((event, outputs))
        # DALI may reuse an output's memory once nobody refers to it, so not before it is copied.
        while self._outputs[0][0].query():  # type: ignore[no-untyped-call]
            self._outputs.popleft()
            if not self._outputs:
                break
        return groups, event

    def close(self) -> None:
        """Stop DALI's threads and free its memory."""
        if self._gpu:
            torch.cuda.synchronize()
        self._outputs.clear()
        self._pipeline = None


def _split(views: list[torch.Tensor], counts: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    return [tuple(views[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _join(views: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Views (b, d, h, w, 1) to (v * b, 1, d, h, w); the copy frees DALI's memory."""
    joined = torch.cat(views)
    return joined.view(joined.shape[0], 1, *joined.shape[1:4])
