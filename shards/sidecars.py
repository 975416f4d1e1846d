"""The two files beside a shard: DALI's index and kerchunk references."""

from __future__ import annotations

from collections.abc import Sequence

from shards.errors import CorruptShardError
from shards.schema import (
    DATA_SUFFIX,
    LABEL_DATA_SUFFIX,
    LABEL_ZARR_SUFFIX,
    ZARR_SUFFIX,
    canonical_json,
)
from shards.tar import Member

IDX_VERSION = "v1.2"
"""First word of the index of DALI's ``wds2idx``: ``extension offset size name`` per member."""
CHUNK_KEY = "c/0/0/0"
"""Key of an array's only chunk, its shard, below the array's path (Zarr v3 default encoding)."""
ROOT_GROUP = canonical_json({"attributes": {}, "node_type": "group", "zarr_format": 3}).decode()
"""Metadata of the group that holds a shard's arrays, so that ``zarr.open_group`` works."""
ZARR_KEYS = {
    ZARR_SUFFIX: "{}/zarr.json",
    DATA_SUFFIX: "{}/" + CHUNK_KEY,
    LABEL_ZARR_SUFFIX: "{}.seg/zarr.json",
    LABEL_DATA_SUFFIX: "{}.seg/" + CHUNK_KEY,
}
"""Where a member lies in the Zarr group, by its suffix; ``{}`` is the sample's key."""


def split_member(name: str) -> tuple[str, str]:
    """Sample key and suffix of a member: cut at the first dot, as webdataset does."""
    key, _, suffix = name.partition(".")
    return key, suffix


def dali_idx(members: Sequence[Member]) -> bytes:
    """Index of a shard, byte for byte what ``wds2idx`` makes of the tar: one line a sample."""
    lines: dict[str, list[str]] = {}
    for member in members:
        key, suffix = split_member(member.name)
        part = f"{suffix} {member.offset} {member.nbytes} {member.name}"
        lines.setdefault(key, []).append(part)
    text = [f"{IDX_VERSION} {len(lines)}", *(" ".join(parts) for parts in lines.values())]
    return ("\n".join(text) + "\n").encode()


def parse_idx(data: bytes, where: str) -> dict[str, dict[str, Member]]:
    """Members of a shard by sample key and suffix, from its index.

    Raises:
        CorruptShardError: not such an index.
    """
    try:
        head, *lines = data.decode("ascii").splitlines()
        version, count = head.split(" ")
        samples = dict(_parse_line(line) for line in lines)
        if version != IDX_VERSION or int(count) != len(samples):
            raise ValueError(f"header {head!r}")
    except ValueError as exc:
        raise CorruptShardError(f"{where}: not a DALI {IDX_VERSION} index ({exc})") from exc
    return samples


def _parse_line(line: str) -> tuple[str, dict[str, Member]]:
    words = line.split(" ")
    if len(words) % 4:
        raise ValueError(f"line of {len(words)} words")
    members = {
        suffix: Member(name=name, offset=int(offset), nbytes=int(nbytes))
        for suffix, offset, nbytes, name in zip(*(words[i::4] for i in range(4)), strict=True)
    }
    return split_member(words[3])[0], members


def kerchunk_refs(shard: str, members: Sequence[Member]) -> bytes:
    """References (kerchunk JSON, version 1) that make a shard a Zarr v3 group of its volumes.

    A volume is the array ``KEY``, its labels are the array ``KEY.seg``.

    The base URL is the template ``u``, empty here: readers pass ``template_overrides={"u": base}``
    with ``base`` ending in a slash, so a dataset can be moved without a rewrite.
    """
    refs: dict[str, object] = {"zarr.json": ROOT_GROUP}
    for member in members:
        key, suffix = split_member(member.name)
        if suffix in ZARR_KEYS:
            refs[ZARR_KEYS[suffix].format(key)] = ["{{u}}" + shard, member.offset, member.nbytes]
    return canonical_json({"version": 1, "templates": {"u": ""}, "refs": refs})
