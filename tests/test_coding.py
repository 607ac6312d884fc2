"""Packed and range-coded codes."""

import numpy as np
import pytest

from vae_jax import coding


@pytest.mark.parametrize("codes,bits", [(2, 1), (1, 1), (256, 8), (257, 9), (512, 9), (1000, 10)])
def test_packed_codes_come_back(codes, bits):
    indices = np.random.default_rng(0).integers(0, codes, 1001)
    assert coding.bits_of(codes) == bits
    data = coding.pack(indices, bits)
    assert len(data) == -(-1001 * bits // 8)
    np.testing.assert_array_equal(coding.unpack(data, bits, 1001), indices)
    with pytest.raises(ValueError):
        coding.unpack(data[:-5], bits, 1001)


def test_frequencies_are_whole_and_near_the_probabilities():
    logits = np.random.default_rng(1).normal(0, 4, (50, 300)).astype(np.float32)
    logits[0, 0] = 500.0
    found = coding.frequencies(logits)
    chances = np.exp(logits - logits.max(-1, keepdims=True).astype(np.float64))
    chances /= chances.sum(-1, keepdims=True)
    assert found.min() == 1 and np.all(found.sum(-1) == 65536)
    assert np.abs(found / 65536 - chances).max() < 0.006
    with pytest.raises(ValueError, match="too many"):
        coding.frequencies(np.zeros((1, 40_000)))


@pytest.mark.parametrize("k,scale", [(2, 8.0), (16, 1.0), (512, 3.0)])
def test_range_coded_codes_come_back_at_the_size_of_their_information(k, scale):
    rng = np.random.default_rng(2)
    sizes = coding.frequencies(rng.normal(0, scale, (4000, k)))
    ends = np.cumsum(sizes, -1)
    symbols = np.array([np.searchsorted(e, rng.integers(65536), "right") for e in ends])
    rows = np.arange(4000)
    data = coding.encode(ends[rows, symbols] - sizes[rows, symbols], sizes[rows, symbols])
    information = -np.log2(sizes[rows, symbols] / 65536).sum() / 8
    assert information - 4 <= len(data) <= information * 1.0005 + 12
    decoder = coding.Decoder(data)
    found = np.concatenate([decoder.take(sizes[i:i + 37]) for i in range(0, 4000, 37)])
    np.testing.assert_array_equal(found, symbols)
    assert decoder.finished()


def test_damaged_data_is_not_finished_or_is_other_symbols():
    rng = np.random.default_rng(3)
    sizes = coding.frequencies(rng.normal(0, 2, (500, 32)))
    ends, rows = np.cumsum(sizes, -1), np.arange(500)
    symbols = np.array([np.searchsorted(e, rng.integers(65536), "right") for e in ends])
    data = coding.encode(ends[rows, symbols] - sizes[rows, symbols], sizes[rows, symbols])
    for place in range(0, len(data), 7):
        bad = bytearray(data)
        bad[place] ^= 4
        decoder = coding.Decoder(bytes(bad))
        try:
            same = np.array_equal(decoder.take(sizes), symbols)
        except ValueError:
            continue
        assert not same or not decoder.finished()
    with pytest.raises(ValueError):
        coding.Decoder(data[:-4]).take(sizes)
    with pytest.raises(ValueError, match="whole number"):
        coding.Decoder(data[:-1])
