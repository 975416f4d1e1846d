"""Who takes part in the loader benchmark, how each is started, and what is aimed at.

Forms. *ordinary*: as the loader's manual has it. *one read*: all crops of a set from one read of a
part or a volume. *int16*: that, with int16 where the peer makes float32 of voxels, and without
metadata. *part*: a part of a loader, for comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.crops import BOX_SIDE, KINDS, SETS_PER_READ

PEERS = Path(__file__).parent / "peers"
HU16, HU32, UNIT = "int16 HU", "float32 HU", "float16 [0, 1]"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loader in one form.

    Attributes:
        name: unlike all others.
        loader: which loader.
        form: see above.
        values: what it delivers.
        command: script or module, and its arguments.
        env: whose environment it needs; ours if empty.
        disk: the folder below the data that it reads, which its script writes if need be.
        wide: it also takes part in the run on more cores.
        kinds: count and side of what a unit holds.
    """

    loader: str
    form: str
    values: str
    command: tuple[str, ...]
    env: str = ""
    disk: str = "volumes"
    wide: bool = False
    kinds: tuple[tuple[int, int], ...] = KINDS

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.loader}, {self.form}"

    def start(self, data: Path, envs: Path | None, cores: int) -> list[str]:
        """The command that starts it on the first cores of the machine."""
        python = str(envs / self.env / "bin/python") if self.env and envs else sys.executable
        more = [str(data / "shards")] if self.command[0] == "-m" else ["--data", str(data)]
        if self.command[0] != "-m":
            more += ["--cores", str(cores)]
        asked = [part.format(cores=cores, peers=PEERS) for part in self.command]
        pinned = ["taskset", "--cpu-list", f"0-{cores - 1}"]
        return [*pinned, python, *asked, *more]


def _ours(loader: str, form: str, values: str, what: str, *, wide: bool = False) -> Case:
    command = ("-m", "benchmarks.loader_ours", *what.split())
    kinds = KINDS if what.split()[0] in ("slices", "dali") else ((1, BOX_SIDE),)
    return Case(
        loader=loader,
        form=form,
        values=values,
        command=command,
        disk="shards",
        wide=wide,
        kinds=kinds,
    )


def _peer(
    loader: str, form: str, values: str, script: str, env: str, disk: str, *, wide: bool = False
) -> Case:
    name, argument = script.split()
    command = (f"{{peers}}/loader_{name}.py", argument)
    return Case(
        loader=loader, form=form, values=values, command=command, env=env, disk=disk, wide=wide
    )


_TUNED = f"--visits {SETS_PER_READ} --threads {{cores}}"
OURS = _ours("ours", "tuned", HU16, f"slices --precision int16 {_TUNED}", wide=True)
DECODE = _ours("our decoder", "part", HU16, "decode")
CODEC = _ours("bare codec", "part", HU16, "codec")
CASES = (
    OURS,
    _ours("ours", "default settings", HU16, "slices --precision int16"),
    _ours("ours", "windowed", UNIT, f"slices {_TUNED}"),
    _ours("ours", "DALI on the CPU", UNIT, f"dali {_TUNED}", wide=True),
    _ours("ours", "regions without crops", HU16, f"regions {_TUNED}", wide=True),
    DECODE,
    CODEC,
    _peer("MONAI CacheDataset", "ordinary", HU32, "monai cache-ordinary", "", "volumes"),
    _peer("MONAI CacheDataset", "one read", HU32, "monai cache-one-read", "", "volumes", wide=True),
    _peer("MONAI CacheDataset", "int16", HU16, "monai cache-int16", "", "volumes"),
    _peer("MONAI PersistentDataset", "ordinary", HU32, "monai persistent-ordinary", "", "volumes"),
    _peer(
        *("MONAI PersistentDataset", "one read", HU32, "monai persistent-one-read", "", "volumes"),
        wide=True,
    ),
    _peer("MONAI PersistentDataset", "int16", HU16, "monai persistent-int16", "", "volumes"),
    _peer("torchio Queue", "ordinary", HU32, "torchio ordinary", "torchio", "torchio"),
    _peer("torchio Queue", "one read", HU16, "torchio one-read", "torchio", "volumes", wide=True),
    _peer("nnU-Net blosc2", "ordinary", HU32, "nnunet ordinary", "nnunet", "nnunet"),
    _peer("nnU-Net blosc2", "one read", HU32, "nnunet one-read", "nnunet", "nnunet", wide=True),
    _peer("nnU-Net blosc2", "int16", HU16, "nnunet int16", "nnunet", "nnunet"),
    _peer("webdataset + npy", "ordinary", HU16, "webdataset ordinary", "webdataset", "webdataset"),
    _peer(
        *("webdataset + npy", "one read", HU16, "webdataset one-read", "webdataset", "webdataset"),
        wide=True,
    ),
    _peer("litdata", "ordinary", HU16, "litdata ordinary", "litdata", "litdata"),
    _peer("litdata", "one read", HU16, "litdata one-read", "litdata", "litdata", wide=True),
    _peer("zarr-python", "ordinary", HU16, "zarr ordinary", "zarr", "shards"),
    _peer("zarr-python", "one read", HU16, "zarr one-read", "zarr", "shards", wide=True),
)
GATES = {
    "MONAI CacheDataset": 1.3,
    "nnU-Net blosc2": 2.5,
    "MONAI PersistentDataset": 6.0,
    "torchio Queue": 20.0,
}
"""Sets a second of ours over those of a peer, one core each."""
DECODE_GATE = 0.8
"""Regions a second of our decoder over those of the codec alone, same chunks."""


def taking_part(envs: Path | None, cores: int, only: Iterable[str] = ()) -> list[Case]:
    """The cases whose environment is there, on one core or more; ``only``: these loaders."""
    wanted = set(only)
    return [
        case
        for case in CASES
        if (cores == 1 or case.wide)
        and (not wanted or case.loader in wanted)
        and (not case.env or (envs is not None and (envs / case.env / ".ready").exists()))
    ]
