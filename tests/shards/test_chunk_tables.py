"""The chunk table read lazily: as it is written, with few requests, by many threads."""

import numpy as np
import pytest

from shards.chunk_tables import Ragged


def test_ragged():
    rows = Ragged(np.arange(6), np.array([0, 2, 2, 6]))
    assert [row.tolist() for row in rows] == [[0, 1], [], [2, 3, 4, 5]]
    assert rows[-1].tolist() == [2, 3, 4, 5]
    assert [row.tolist() for row in rows[1:]] == [[], [2, 3, 4, 5]]
    with pytest.raises(IndexError):
        rows[3]
