"""What the guard's counters are, and what a change of one most likely means."""

from __future__ import annotations

from collections.abc import Mapping

MEANING = {
    "sets": "sets that were counted",
    "ranges": "ranges that the loader asked for",
    "bytes_asked": "bytes in those ranges",
    "gets": "reads of files, or GETs as the server counts them",
    "bytes_on_wire": "bytes read, or sent by the server",
    "chunks": "chunks decoded",
    "bytes_ideal": "stored bytes of the chunks decoded",
    "voxels_decoded": "voxels decoded",
    "bytes_copied": "bytes that decoding copied besides, as it says itself",
    "bytes_joined": "bytes copied to join views, as the graph says itself",
    "hedges": "second requests for slow ones",
    "retries": "requests sent again after a fault",
    "table_requests": "requests for chunk tables when the dataset is opened",
    "sets_asked_ahead": "sets asked for before their turn",
    "sets_decoded_ahead": "sets decoded before their turn",
    "bytes_held_peak": "most stored bytes asked for ahead and kept after a batch",
    "peak_in_flight": "most requests under way at once",
    "plan_blocks": "lines that took 64 KiB or more to plan and to ask",
    "read_extra_kib": "memory of Python taken to read, beyond what was read",
    "decode_blocks": "lines that took 64 KiB or more to decode into a slot",
    "decode_kib": "memory that those took",
    "handed_over_blocks": "lines that took 64 KiB or more to hand a batch over",
    "torch_writes": "operators of torch that wrote new memory",
    "torch_bytes_written": "what those wrote",
}
"""By counter."""

UP = {
    "ranges": "neighbouring chunks are not joined into a range (MAX_GAP, MAX_RANGE, order)",
    "bytes_asked": "more is asked for than boxes touch (wider gaps, whole volumes, other boxes)",
    "gets": "requests are sent twice (hedging, retries), or ranges are split on their way",
    "bytes_on_wire": "bytes are read twice, or more of them than were asked for",
    "chunks": "chunks are decoded that no box touches, or twice",
    "bytes_ideal": "the chunks decoded are other ones, or are stored larger",
    "voxels_decoded": "voxels are decoded that no box touches, or chunks are larger",
    "bytes_copied": "decoding copies what it could write in place",
    "bytes_joined": "views are copied or converted on their way to torch",
    "hedges": "hedging is on, although the guard turns it off",
    "retries": "the storage failed, or a request was given up too early",
    "table_requests": "opening reads the chunk tables more often",
    "sets_asked_ahead": "the loader reads further ahead: more memory",
    "sets_decoded_ahead": "the loader decodes further ahead: more memory",
    "bytes_held_peak": "stored bytes are kept longer, or more is asked for ahead",
    "peak_in_flight": "more requests at once than the settings allow",
    "plan_blocks": "planning takes large arrays for every set",
    "read_extra_kib": "what is read is copied",
    "decode_blocks": "decoding takes new memory for each chunk or set: a copy, or a scratch array",
    "decode_kib": "decoding takes new memory for each chunk or set: a copy, or a scratch array",
    "handed_over_blocks": "a batch is copied by numpy on its way to the consumer",
    "torch_writes": "a batch is copied or converted once more on its way to the consumer",
    "torch_bytes_written": "a batch is copied or converted once more on its way to the consumer",
}
DOWN = {
    "ranges": "ranges are joined over wider gaps, or fewer chunks are wanted",
    "bytes_asked": "fewer bytes are asked for: fewer chunks, or narrower gaps",
    "gets": "fewer requests: wider joins, or a cache in between",
    "bytes_on_wire": "less is read than before",
    "chunks": "chunks are skipped, or boxes lie elsewhere",
    "bytes_ideal": "the chunks decoded are other ones, or are stored smaller",
    "voxels_decoded": "voxels are skipped, or boxes lie elsewhere",
    "sets_asked_ahead": "the loader reads less far ahead: latency shows",
    "sets_decoded_ahead": "the loader decodes less far ahead",
    "bytes_held_peak": "less is kept, or less is asked for ahead",
    "peak_in_flight": "requests wait for each other (a serial fetch, or a smaller in_flight)",
}
FOLLOWS = {"gets": "ranges", "bytes_on_wire": "bytes_asked"}
BETTER = "less is taken than before"


def cause(name: str, recorded: int | None, now: int | None, others: Mapping[str, int]) -> str:
    """A sentence on why a counter changed.

    Args:
        name: of the counter.
        recorded: what it was; None: it is new.
        now: what it is; None: it is gone.
        others: differences of the counters beside it.
    """
    if recorded is None:
        return "a new counter: record it"
    if now is None:
        return "nothing counts this any more"
    followed = FOLLOWS.get(name)
    if followed and others.get(followed) == now - recorded:
        return f"follows {followed}"
    if now < recorded:
        return DOWN.get(name, BETTER)
    if name == "ranges" and others.get("chunks", 0) > 0:
        return "more ranges because more chunks are wanted"
    return UP.get(name, "more is taken than before")
