"""The random numbers against Philox written out from the paper and its published vectors."""

import numpy as np
import pytest

from shards.rng import BOX, ORDER, permutation, raw, uniforms

MASK = 2**64 - 1
# Published known answers of Random123 for philox4x64, 10 rounds: counter, key, output.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (MASK, MASK, MASK, MASK),
        (MASK, MASK),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def philox4x64(counter, key):
    """Ten rounds, plain integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_reference_itself_gives_the_published_answers(counter, key, expected):
    assert philox4x64(counter, key) == expected


@pytest.mark.parametrize(
    ("seed", "stream", "index", "attempt"),
    [(0, ORDER, 0, 0), (7, BOX, 12345, 3), (2**64 - 1, 4, 2**63 + 5, 1)],
)
def test_words_are_philox_at_the_documented_counter(seed, stream, index, attempt):
    first = philox4x64((1, attempt, index, 0), (seed, stream))
    second = philox4x64((2, attempt, index, 0), (seed, stream))
    assert raw(seed, stream, index, attempt, 8).tolist() == [*first, *second]


def test_uniforms_are_the_upper_53_bits():
    words = philox4x64((1, 2, 3, 0), (5, BOX))
    expected = [(word >> 11) / 2**53 for word in words]
    assert uniforms(5, BOX, 3, 2, 4).tolist() == expected


def test_known_values():
    # Computed once with the reference above.
    assert uniforms(0, ORDER, 0, 0, 2).tolist() == [0.8133540609793564, 0.7513314251083365]


def test_a_longer_draw_only_appends():
    long = uniforms(1, BOX, 9, 0, 24)
    for n in range(24):
        assert np.array_equal(uniforms(1, BOX, 9, 0, n), long[:n])


def test_streams_indices_attempts_and_seeds_differ():
    draws = [
        uniforms(*at, 4).tobytes()
        for at in [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    ]
    assert len(set(draws)) == len(draws)


def test_permutation_sorts_the_words():
    words = raw(3, ORDER, 2, 0, 50).tolist()
    assert permutation(3, ORDER, 2, 50).tolist() == sorted(range(50), key=words.__getitem__)
