"""The noise bank: known, normal, and without structure."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from coralbay.noise import bank_side, noise_bank
from shards import rng

KNOWN = [-0.178466796875, 0.3701171875, -0.040283203125, -0.1646728515625]
DIGEST = "fdb00e089e41245e"


def test_known_answer() -> None:
    bank = noise_bank(80)
    assert bank.dtype == np.float16
    np.testing.assert_array_equal(bank[0, 0, :4], KNOWN)
    assert hashlib.sha256(bank.tobytes()).hexdigest()[:16] == DIGEST


def test_is_the_inverse_normal_of_the_words_of_the_noise_stream() -> None:
    uniform = rng.uniforms(0, rng.NOISE, 0, 0, 1000)
    expected = stats.norm.ppf(uniform)
    np.testing.assert_allclose(noise_bank(80).ravel()[:1000], expected, rtol=2**-11, atol=1e-6)


def test_is_standard_normal() -> None:
    values = noise_bank(128).ravel().astype(np.float64)  # 2.1 million
    assert values.mean() == pytest.approx(0, abs=4 / 128**1.5)
    assert values.std() == pytest.approx(1, abs=3 / 128**1.5)
    assert np.isfinite(values).all()
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert stats.skew(values) == pytest.approx(0, abs=0.01)
    assert stats.kurtosis(values) == pytest.approx(0, abs=0.02)


def test_neighbours_and_windows_are_independent() -> None:
    bank = noise_bank(128).astype(np.float64)
    for shift in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 64), (0, 0, 2)]:
        other = np.roll(bank, shift, axis=(0, 1, 2))
        # 2.1 million pairs: a standard deviation is .0007.
        assert abs((bank * other).mean()) < 0.003
    # Not merely uncorrelated: nor are the sizes.
    assert abs(np.corrcoef(bank[1:].ravel() ** 2, bank[:-1].ravel() ** 2)[0, 1]) < 0.003


def test_is_made_once_and_cannot_be_changed() -> None:
    assert noise_bank(80) is noise_bank(80)
    with pytest.raises(ValueError, match="read-only"):
        noise_bank(80)[0, 0, 0] = 1


def test_the_largest_view_has_many_places() -> None:
    assert bank_side((96, 96, 48)) == 192
    assert (bank_side((96, 96, 48)) - 96) ** 3 == 884_736
