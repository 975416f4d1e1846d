"""Ways to harm a file, and the cases made of them: case ``n`` of a run is a function of ``n``."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.seeds import ARCHIVES, IMAGES, Files, Seed, seed, tarred, zipped

Random = random.Random
Harm = Callable[[bytes, int, Random], bytes]

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
"""Lengths and counts that programs stumble over."""


@dataclass(frozen=True)
class Case:
    """One harmed input.

    Attributes:
        index: of the case.
        seed: what it was before.
        harm: name of what was done.
        place: offset at which.
        harmed: names of the files it was done to.
        files: what is written.
        packed: the archive the files were put in afterwards, or empty.
        default_config: built at 1.5 mm with body crop; else at native spacing and whole.
    """

    index: int
    seed: Seed
    harm: str
    place: int
    harmed: tuple[str, ...]
    files: Files
    packed: str
    default_config: bool


def make_case(run: int, index: int) -> Case:
    """Case ``index`` of run ``run``: the same on every machine and in any order."""
    rng = Random(f"coralbay fuzz {run} {index}")
    chosen = seed(rng.choice(IMAGES if rng.random() < 0.75 else ARCHIVES))
    name = rng.choice(sorted(HARMS))
    names = sorted(chosen.files)
    harmed = names if rng.random() < 0.3 else [rng.choice(names)]
    place = _place(chosen, harmed[0], rng)
    salt = rng.random()
    files = dict(chosen.files)
    for file in harmed:
        # Each file is harmed in the same way: a whole series may change its matrix, say.
        files[file] = HARMS[name](files[file], min(place, len(files[file]) - 1), Random(salt))
    packed = rng.choice(("zip", "tar.gz")) if chosen.name in IMAGES and rng.random() < 0.15 else ""
    return Case(
        index=index,
        seed=chosen,
        harm=name,
        place=place,
        harmed=tuple(harmed),
        files=_pack(files, packed),
        packed=packed,
        default_config=rng.random() < 0.15,
    )


def _place(chosen: Seed, file: str, rng: Random) -> int:
    """An offset: by half where an element or member begins or just after, else anywhere."""
    size = len(chosen.files[file])
    if rng.random() < 0.5:
        return min(rng.choice(chosen.marks[file]) + rng.choice((0, 0, 4, 6, 8, 10, 12)), size - 1)
    return rng.randrange(size)


def _pack(files: Files, packed: str) -> Files:
    if packed == "zip":
        return {"packed.zip": zipped(files)}
    if packed == "tar.gz":
        return {"packed.tar.gz": gzip.compress(tarred(files), mtime=0)}
    return files


# ---------------------------------------------------------------- harms


def _overwrite(data: bytes, place: int, new: bytes) -> bytes:
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


def cut(data: bytes, place: int, rng: Random) -> bytes:
    return data[:place]


def bit(data: bytes, place: int, rng: Random) -> bytes:
    return _overwrite(data, place, bytes([data[place] ^ 1 << rng.randrange(8)]))


def byte(data: bytes, place: int, rng: Random) -> bytes:
    return _overwrite(data, place, bytes([data[place] ^ rng.randrange(1, 256)]))


def some_bytes(data: bytes, place: int, rng: Random) -> bytes:
    return _overwrite(data, place, rng.randbytes(rng.randrange(2, 40)))


def zeros(data: bytes, place: int, rng: Random) -> bytes:
    return _overwrite(data, place, bytes(rng.choice((2, 4, 16, 64, 512))))


def ones(data: bytes, place: int, rng: Random) -> bytes:
    return _overwrite(data, place, b"\xff" * rng.choice((2, 4, 16, 64)))


def number(data: bytes, place: int, rng: Random) -> bytes:
    """A length, a count or a size that was never meant."""
    width = rng.choice((2, 4, 8))
    value = rng.choice((*NUMBERS, len(data), len(data) - place)) % (1 << 8 * width)
    return _overwrite(data, place, value.to_bytes(width, rng.choice(("little", "big"))))


def swap(data: bytes, place: int, rng: Random) -> bytes:
    """Two fields change places: two lengths, or the two halves of one."""
    width = rng.choice((2, 4))
    other = rng.choice((place + width, rng.randrange(len(data))))
    first, second = data[place : place + width], data[other : other + width]
    return _overwrite(_overwrite(data, place, second), other, first)


def reverse(data: bytes, place: int, rng: Random) -> bytes:
    """A field in the other byte order."""
    return _overwrite(data, place, data[place : place + rng.choice((2, 4, 8))][::-1])


def remove(data: bytes, place: int, rng: Random) -> bytes:
    return data[:place] + data[place + rng.choice((1, 2, 8, 60, 512)) :]


def repeat(data: bytes, place: int, rng: Random) -> bytes:
    return data[:place] + data[place : place + rng.choice((1, 2, 8, 60, 512))] + data[place:]


def insert(data: bytes, place: int, rng: Random) -> bytes:
    return data[:place] + rng.randbytes(rng.choice((1, 2, 8, 60))) + data[place:]


def digit(data: bytes, place: int, rng: Random) -> bytes:
    """A text value that is still text: the next digit becomes another, a sign or a dot."""
    for at in range(place, min(place + 400, len(data))):
        if data[at : at + 1].isdigit():
            return _overwrite(data, at, rng.choice("0123456789.-e").encode())
    return byte(data, place, rng)


HARMS: dict[str, Harm] = {
    "cut": cut, "bit": bit, "byte": byte, "bytes": some_bytes, "zeros": zeros, "ones": ones,
    "number": number, "swap": swap, "reverse": reverse, "remove": remove, "repeat": repeat,
    "insert": insert, "digit": digit,
}  # fmt: skip
