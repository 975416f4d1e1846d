"""A loader that delivers crops of a volume, with a fault that is asked for; run as a script."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.crops import BATCH, arrived, cut, empty_batch
from benchmarks.stream_protocol import keep_answers_apart, serve


def batches(folder, fault):
    rng = np.random.default_rng(0)
    volume = np.load(sorted(folder.glob("volumes/*.npy"))[0])
    while True:
        groups = empty_batch(np.float32)
        for place in range(BATCH):
            cut(volume, groups, place, rng)
        if fault == "one voxel":
            groups[0][3, 0, 5, 6, 7] += 1
        elif fault == "mirrored":
            groups[1][2] = groups[1][2, :, :, ::-1].copy()
        elif fault == "half a HU":
            groups[1][9] += 0.5
        elif fault == "the same again":
            groups[0][:] = groups[0][0]
        elif fault == "one too few":
            groups[1] = groups[1][:-1]
        yield arrived(*groups)


if __name__ == "__main__":
    keep_answers_apart()
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    serve(batches(Path(options["--data"]), options["--fault"]), loader="wrong")
