"""Writes the volumes of a dataset of ours as a litdata dataset: an item is a stored volume.

A second epoch would be read from litdata's local cache, and a cache that is smaller than the
dataset failed here (a chunk was evicted while a worker read it). So the dataset is made longer:
every chunk is there several times, by hard links under further names.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

from litdata.streaming.writer import BinaryWriter

CHUNK_BYTES = 64 * 2**20
"""litdata's default."""
TIMES = 4


def main(source: Path, target: Path) -> None:
    """Convert the dataset in folder ``source`` to a new folder ``target``."""
    target.mkdir(parents=True)
    writer = BinaryWriter(str(target), chunk_bytes=CHUNK_BYTES)
    number = 0
    for shard in sorted(source.glob("shard-*.tar")):
        with tarfile.open(shard) as tar:
            item: dict[str, object] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                item["key"] = key
                if extension != "json":
                    item[extension.rpartition(".")[2]] = tar.extractfile(member).read()
                if extension == "ct.zshard":
                    writer[number] = {"key": key, "array": item["json"], "zshard": item["zshard"]}
                    number += 1
    writer.done()
    writer.merge()
    index = json.loads((target / "index.json").read_text())
    longer = []
    for turn in range(TIMES):
        for chunk in index["chunks"]:
            name = f"{turn}-{chunk['filename']}"
            os.link(target / chunk["filename"], target / name)
            longer.append({**chunk, "filename": name})
    for chunk in index["chunks"]:
        (target / chunk["filename"]).unlink()
    (target / "index.json").write_text(json.dumps({**index, "chunks": longer}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
