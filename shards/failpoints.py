"""Places where a test can kill this process, to show that a run survives it.

Every step of a build whose order matters for restart names its place with `failpoint`. Nothing
happens unless ``CORALBAY_FAILPOINT`` is set to ``name`` or ``name:nth``: then the process kills
itself (SIGKILL, as an out-of-memory killer would) when it comes there for the nth time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "CORALBAY_FAILPOINT"
BUILD_FAILPOINTS = (
    "scanned",
    "state_written",
    "sample_added",
    "tar_written",
    "idx_written",
    "refs_written",
    "tar_renamed",
    "result_saved",
    "publishing",
    "table_written",
    "before_manifest",
    "after_manifest",
    "state_removed",
    "before_rename",
)
"""Of ``ingest build-shards``, in the order of a build; the last is in every atomic write."""
BUCKET_FAILPOINTS = (
    "bucket_locked",
    "part_sent",
    "delivered",
    "manifest_waits",
)
"""Of ``ingest build-shards`` into a bucket, besides those of any build: each object counts as
delivered; a part is sent only of a file that takes several."""
COMMIT_FAILPOINTS = (
    "staged",
    "decided",
    "shard_moved",
    "file_replaced",
    "manifest_replaced",
    "stale_removed",
    "decision_removed",
)
"""Of a new generation of a dataset, in the order of ``shards.generations``."""
FAILPOINTS = frozenset(BUILD_FAILPOINTS + BUCKET_FAILPOINTS + COMMIT_FAILPOINTS)

_visits: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Kill this process if the environment asks for it here.

    Raises:
        ValueError: the name is not in ``FAILPOINTS``: a test could not know it.
    """
    if name not in FAILPOINTS:
        raise ValueError(f"{name!r} is no failpoint")
    if not (wanted := os.environ.get(VARIABLE)):
        return
    place, _, nth = wanted.partition(":")
    if place == name:
        _visits[name] += 1
        if _visits[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
