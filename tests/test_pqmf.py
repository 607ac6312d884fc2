"""Filter bank: round trips of real sound, the naive filters of SciPy, single tones, streams, delays."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile

from vae_jax.config import UserError
from vae_jax.dsp import pqmf
from vae_jax.layers import streaming

BANDS = [1, 2, 3, 5, 8, 16]


def snr(reference, other):
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    return 10 * np.log10(np.sum(reference**2) / (np.sum((reference - other) ** 2) + 1e-30))


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def round_trip(x_bt, bands, causal):
    return pqmf.synthesise(pqmf.analyse(x_bt, bands, causal=causal), causal=causal)


def compared(x_t, bands, causal):
    """(the signal, its round trip), delay taken out, without the ends that the centred form lacks neighbours for"""
    x_t = x_t[: len(x_t) // bands * bands]
    y_t = np.asarray(round_trip(x_t[None], bands, causal))[0]
    delay = pqmf.bank(bands, causal=causal).delay
    edge = 0 if causal else len(pqmf.prototype(bands))
    return x_t[edge : len(x_t) - max(delay, edge)], y_t[delay + edge : len(x_t) - max(0, edge - delay)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bands", BANDS)
def test_noise_comes_back(bands, causal):
    assert snr(*compared(noise(0, 40000), bands, causal)) > 84


@pytest.mark.parametrize("causal", [False, True])
def test_speech_and_music_come_back_from_16_bands(data_dir, causal):
    for pattern in ("speech/one_speaker/*.flac", "speech/two_speakers/speaker_m/*.ogg", "music/rock/*.ogg", "music/orchestral/*.ogg"):
        wave, _ = soundfile.read(min(data_dir.glob(pattern)), frames=80000, dtype="float32", always_2d=True)
        assert snr(*compared(wave[:, 0], 16, causal)) > 80


@pytest.mark.parametrize("bands,causal,delay", [(16, False, 0), (16, True, 361), (5, True, 114), (3, False, 0), (1, True, 0)])
def test_an_impulse_comes_back_late_by_the_delay(bands, causal, delay):
    assert pqmf.bank(bands, causal=causal).delay == delay
    for phase in range(bands):
        x_t = np.zeros(100 * bands, np.float32)
        x_t[40 * bands + phase] = 1
        y_t = np.asarray(round_trip(x_t[None], bands, causal))[0]
        assert np.argmax(np.abs(y_t)) == 40 * bands + phase + delay
        assert snr(np.roll(x_t, delay), y_t) > 84


def test_one_band_is_the_identity():
    x_t = noise(1, 1, 100)
    np.testing.assert_array_equal(pqmf.analyse(x_t, 1)[..., 0], x_t)
    np.testing.assert_array_equal(round_trip(x_t, 1, True), x_t)


@pytest.mark.parametrize("bands,attenuation_db,length", [(16, 100.0, 377), (16, 70.0, 255), (3, 120.0, 87), (7, 55.0, 85)])
def test_the_prototype_is_as_long_and_as_steep_as_stated(bands, attenuation_db, length):
    h_t = pqmf.prototype(bands, attenuation_db)
    assert len(h_t) == length and np.isclose(h_t.sum(), 1)
    np.testing.assert_allclose(h_t, h_t[::-1], atol=1e-12)
    response, points = np.abs(np.fft.rfft(h_t, 1 << 16)), 1 << 15
    assert 20 * np.log10(response[-(-points // bands) :].max()) < 0.01 - attenuation_db
    power = response**2 + response[np.abs(points // bands - np.arange(points + 1))] ** 2  # of neighbours: 1 all over the first band
    assert np.max(np.abs(power[: points // bands] / power[: points // bands].mean() - 1)) < (3e-4 if attenuation_db >= 100 else 5e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bands", BANDS[1:])
def test_equals_strided_filters(bands, causal):
    """The textbook form: full convolutions in float64, every bands-th sample kept, zeros put between, filtered by the mirror images, summed."""
    m, h_t, t = bands, pqmf.prototype(bands), 40 * bands
    last = len(h_t) // 2
    x_t, n, k = noise(2, t), np.arange(t // bands), np.arange(m)[:, None]
    h_kt = 2 * h_t * np.cos((2 * k + 1) * np.pi / (2 * m) * np.arange(-last, last + 1) + (-1.0) ** k * np.pi / 4)
    at = m * n + (m - 1 if causal else m // 2 + last)  # in the full convolution, which begins `last` samples early
    bands_nm = np.stack([np.convolve(x_t.astype(np.float64), h)[at] for h in h_kt], -1)
    upright = bands_nm * (1 - 2 * (n[:, None] % 2) * (np.arange(m) % 2))
    np.testing.assert_allclose(pqmf.analyse(x_t[None], m, causal=causal)[0], upright, atol=2e-6)
    wanted = 0
    for band, h in zip(bands_nm.T, h_kt):
        spread = np.zeros(t)
        spread[::m] = band
        wanted = wanted + scipy.signal.convolve(spread, h[::-1], method="direct")
    first = 0 if causal else last - m // 2
    wanted = wanted[first : first + t] * m / np.sum(h_kt**2)
    np.testing.assert_allclose(pqmf.synthesise(jnp.float32(upright)[None], causal=causal)[0], wanted, atol=2e-5)


@pytest.mark.parametrize("bands", [2, 5, 16])
def test_a_tone_lands_in_its_band_upright_and_as_loud(bands):
    frames = 1024
    for band in range(bands):
        for share in (0.5, 0.7):  # of the way from the band's lower edge to its upper one
            x_t = np.sin(np.pi * (band + share) / bands * np.arange(frames * bands)).astype(np.float32)
            found = np.asarray(pqmf.analyse(x_t[None], bands)[0], np.float64)[200:-200]
            energy = np.sum(found**2, 0)
            assert energy[band] / energy.sum() > (1 - 1e-8 if share == 0.5 else 0.9)
            spectrum = np.abs(np.fft.rfft(found[:, band] * np.hanning(len(found))))
            assert abs(np.argmax(spectrum) / (len(spectrum) - 1) - share) < 0.01
            if share == 0.5:
                assert abs(np.sqrt(2 * np.mean(found[:, band] ** 2)) - 1) < 0.01


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bands", BANDS)
def test_a_stream_is_the_whole_signal_late_by_its_delay(bands, causal):
    """Also where the stream comes late by an odd number of frames already, which turns the signs of the odd bands."""

    class Chain(nn.Module):
        @nn.compact
        def __call__(self, s):
            return pqmf.Synthesis(bands, causal=causal)(streaming.Conv(bands, 3)(pqmf.Analysis(bands, causal=causal)(s)))

    module, x = Chain(), jnp.asarray(noise(3, 2, 120, bands))
    variables = module.init(jax.random.key(0), streaming.Signal(x))
    whole = module.apply(variables, streaming.Signal(x)).x
    state, parts, at = streaming.start(module, variables, bands, 2, 1), [], 0
    step = jax.jit(lambda state, x: streaming.step(module, variables, state, x))
    for size in np.random.default_rng(4).choice([1, 4, 13], 120):
        state, made = step(state, x[:, at : at + size])
        parts.append(made.x)
        at += size
        if at >= 120:
            break
    half = 0 if causal or bands == 1 else (len(pqmf.bank(bands).analysis) - 1) // 2
    assert made.delay == 2 * half + 1
    assert snr(whole[:, : 120 - made.delay], jnp.concatenate(parts, 1)[:, made.delay : 120]) > 100


def test_half_precision_comes_in_single_precision_goes_out():
    x_bt = jnp.asarray(noise(5, 1, 4096))
    found = pqmf.analyse(x_bt.astype(jnp.bfloat16), 16)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, pqmf.analyse(x_bt.astype(jnp.bfloat16).astype(jnp.float32), 16))


@pytest.mark.parametrize("bands,attenuation_db", [(0, 100.0), (-3, 100.0), (2.5, 100.0), (5000, 100.0), (16, 5.0), (16, 1000.0), (16, float("nan"))])
def test_nonsense_is_refused(bands, attenuation_db):
    with pytest.raises(UserError):
        pqmf.bank(bands, attenuation_db)


def test_accelerators_are_not_to_round_it():
    """Rounded to the 8 or 11 bits that they multiply by default, samples would have 50 to 70 dB."""
    traced = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.sin(round_trip(x, 16, True)))))(jnp.ones((1, 320))))
    assert traced.count("conv_general_dilated[") == traced.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 4


def test_a_length_that_is_no_multiple_is_refused():
    with pytest.raises(UserError, match="100 samples.*16 bands"):
        pqmf.analyse(jnp.zeros((1, 100)), 16)
