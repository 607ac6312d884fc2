"""Augmentation against SciPy's filters and fits, sines of known frequency, and the distributions that the settings promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from vae_jax.config import UserError
from vae_jax.dsp import augment

RATE = 48000
OFF = augment.Augment(allpass=0.0, dither=False)
ALL = augment.Augment(pitch=1.0, allpass=1.0, compress=1.0, gain=1.0, mute=0.3)
run = jax.jit(lambda key, x, settings, samples: augment.augment(key, x, RATE, augment.Augment(*settings), samples), static_argnums=(2, 3))
resample = jax.jit(augment.resample, static_argnums=(2, 3))


def made(x, samples=None, seed=0, **fields):
    return np.asarray(run(jax.random.key(seed), x, dataclasses.astuple(dataclasses.replace(OFF, **fields)), samples or x.shape[1]))


def noise(*shape, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def db(x):
    return 20 * np.log10(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("hz, rate, radius", [(20, 48000, 0.99), (210, 48000, 0.99), (2000, 44100, 0.99), (3000, 8000, 0.99), (700, 16000, 0.5)])
def test_allpass_is_lfilter(hz, rate, radius):
    x = noise(7001, 2)
    pole = np.array([1, -2 * radius * np.cos(2 * np.pi * hz / rate), radius**2])
    theirs = scipy.signal.lfilter(pole[::-1], pole, x.astype(np.float64), axis=0)
    ours = np.asarray(jax.jit(augment.allpass, static_argnums=(2, 3))(jnp.asarray(x), hz, rate, radius))
    assert ours.shape == x.shape and db(ours - theirs) < db(theirs) - 100  # float32 knows hz to 1e-7


def test_allpass_changes_no_magnitude_and_draws_its_pole_evenly_in_log_frequency():
    impulse = np.zeros((300, 3000, 1), np.float32)
    impulse[:, 0] = 1
    response = made(impulse, allpass=1.0)[..., 0].astype(np.float64)
    np.testing.assert_allclose(np.abs(np.fft.rfft(response, 4096)), 1, atol=2e-4)
    # from the fourth sample on h[n] = 2 r cos(w) h[n - 1] - r^2 h[n - 2]
    left, before, last = response[:, 3:40], response[:, 2:39], response[:, 1:38]
    cosine = ((left + 0.99**2 * last) * before).sum(1) / (before**2).sum(1) / (2 * 0.99)
    hz = np.arccos(np.minimum(cosine, 1)) * RATE / (2 * np.pi)
    above = np.sort(hz[hz > 60])  # below that the cosine is too near 1 to tell the frequency
    assert above.max() < 2001 and abs(len(above) / 300 - np.log(2000 / 60) / np.log(100)) < 0.08
    assert scipy.stats.kstest(np.log(above), scipy.stats.uniform(np.log(60), np.log(2000 / 60)).cdf).pvalue > 0.001


@pytest.mark.parametrize("field, probability", [("allpass", 0.8), ("compress", 0.5), ("gain", 0.3), ("mute", 0.1)])
def test_each_example_is_drawn_for_itself_and_its_channels_alike(field, probability):
    x = np.repeat(np.tile(noise(1, 600, 1), (500, 1, 1)), 2, 2)
    y = made(x, **{field: probability})
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    changed = np.any(y != x, (1, 2))
    assert abs(changed.mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / 500)
    np.testing.assert_array_equal(y[~changed], x[~changed])
    if field != "mute":
        assert len(np.unique(y[changed][:, 100, 0])) > 0.95 * changed.sum()
    np.testing.assert_array_equal(y, made(x, **{field: probability}))
    assert np.any(y != made(x, seed=1, **{field: probability}))


def test_dither_is_white_and_even_over_one_step_of_16_bits():
    y = made(np.zeros((4, 5001, 2), np.float32), dither=True) * 2**15
    assert np.abs(y).max() < 0.5
    assert scipy.stats.kstest(y.ravel(), scipy.stats.uniform(-0.5, 1).cdf).statistic < 0.01
    assert abs(y.var() * 12 - 1) < 0.02 and abs(y.mean()) < 0.004
    rows = y.transpose(0, 2, 1).reshape(8, -1)
    correlation = np.corrcoef(np.concatenate([rows[:, :-1], rows[:, 1:]]))
    assert np.abs(correlation[:8, 8:]).max() < 0.06 and np.abs(correlation[:8, :8] - np.eye(8)).max() < 0.06
    stored = np.random.default_rng(0).integers(-32768, 32767, (2, 4000, 1)).astype(np.float32) / 2**15
    np.testing.assert_array_equal(np.rint(made(stored, dither=True) * 2**15), stored * 2**15)  # still the same 16 bits


def test_gain_is_even_in_decibels_and_stays_within_full_scale():
    x = noise(400, 500, 1)
    x *= 0.5 / np.abs(x).max((1, 2), keepdims=True)
    y = made(x, gain=1.0, gain_low_db=-20.0, gain_high_db=5.0)
    found = 20 * np.log10(np.abs(y).max((1, 2)) / 0.5)
    assert scipy.stats.kstest(found, scipy.stats.uniform(-20, 25).cdf).pvalue > 0.001
    limited = np.abs(made(x, gain=1.0, gain_low_db=3.0, gain_high_db=12.0)).max((1, 2))
    assert limited.max() < 1.000001 and (limited > 0.999999).mean() > 0.4


def test_mute_is_silence_and_with_dither_the_silence_of_16_bits():
    x = noise(50, 300, 1)
    assert not made(x, mute=1.0).any()
    quiet = made(x, mute=1.0, dither=True)
    assert quiet.any() and np.abs(quiet).max() < 2.0**-16


@pytest.mark.parametrize("rate, channels", [(48000, 1), (8000, 2)])
def test_compression_follows_its_curve_and_keeps_the_peak(rate, channels):
    time = np.arange(2 * rate) / rate
    levels = [0, -10, -20, -40]
    steps = np.repeat(10 ** (np.array(levels) / 20), rate // 2)
    x = (0.7 * steps * np.sin(2 * np.pi * 1000 * time))[:, None].repeat(channels, 1).astype(np.float32)
    y = np.asarray(augment.compress(jnp.asarray(x), rate, 3.0, 25.0))
    assert y.shape == x.shape and np.isclose(np.abs(y).max(), np.abs(x).max(), rtol=1e-5)
    middles = [slice(int((i + 0.3) * rate / 2), int((i + 0.7) * rate / 2)) for i in range(4)]
    ours = np.array([db(y[m]) - db(x[m]) for m in middles])
    curve = np.array([-(1 - 1 / 3) * 3 * np.log1p(np.exp((level + 25) / 3)) for level in levels])
    np.testing.assert_allclose(ours - ours[0], curve - curve[0], atol=0.1)
    same = np.asarray(augment.compress(jnp.asarray(x), rate, 1.0, 25.0))
    np.testing.assert_allclose(same, x, atol=1e-6)


def fitted(y, frequency):
    """Amplitude of a sine of known frequency in y, and the root mean square of the rest."""
    n = np.arange(len(y))
    basis = np.stack([np.cos(2 * np.pi * frequency * n), np.sin(2 * np.pi * frequency * n)], 1)
    weights = np.linalg.lstsq(basis, y.astype(np.float64), rcond=None)[0]
    return np.hypot(*weights), np.sqrt(np.mean((y - basis @ weights) ** 2))


@pytest.mark.parametrize("steps, semitones", [(152, 3.0), (108, 3.0), (128, 3.0), (131, 0.5), (256, 12.0), (64, 12.0)])
@pytest.mark.parametrize("share", [0.002, 0.17, 0.5, 1.0])  # of the highest frequency that passes
def test_resampling_moves_a_sine_by_the_ratio(steps, semitones, share):
    samples = 3001
    needed = augment.source_samples(augment.Augment(pitch=1.0, pitch_semitones=semitones), samples)
    frequency = 0.42 * min(1, steps / 128) * share  # cycles a sample after resampling
    before = frequency * 128 / steps
    x = np.sin(2 * np.pi * before * np.arange(needed) + 0.3)[:, None].astype(np.float32)
    y = np.asarray(resample(jnp.asarray(x), steps, semitones, samples))
    assert y.shape == (samples, 1)
    amplitude, rest = fitted(y[:, 0], frequency)
    assert abs(amplitude - 1) < 1e-3 and rest < 1e-4


def test_resampling_leaves_no_alias():
    needed = augment.source_samples(augment.Augment(pitch=1.0, pitch_semitones=12.0), 3001)
    for before in (0.26, 0.3, 0.45):  # beyond Nyquist when played twice as fast
        x = np.sin(2 * np.pi * before * np.arange(needed))[:, None].astype(np.float32)
        assert db(np.asarray(resample(jnp.asarray(x), 256, 12.0, 3001))) < -75


def test_pitch_draws_from_its_range_and_uses_the_longer_crop():
    settings = augment.Augment(pitch=1.0)
    needed = augment.source_samples(settings, 4096)
    assert 1.18 * 4096 < needed < 1.25 * 4096 and augment.source_samples(OFF, 4096) == 4096
    x = np.sin(2 * np.pi * 0.05 * np.arange(needed)).astype(np.float32)
    y = made(np.tile(x[None, :, None], (200, 1, 2)), 4096, pitch=0.75)
    assert y.shape == (200, 4096, 2)
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    spectrum = np.abs(np.fft.rfft(y[..., 0] * np.hanning(4096), 1 << 17))
    semitones = 12 * np.log2(spectrum.argmax(1) / (1 << 17) / 0.05)
    kept = np.all(y[..., 0] == x[:4096], 1)
    assert abs(kept.mean() - 0.25) < 0.13 and np.abs(semitones).max() < 3.05
    assert scipy.stats.kstest(semitones[~kept], scipy.stats.uniform(-3, 6).cdf).pvalue > 0.001


def test_detuned_sounds_keep_their_places_over_the_ratio():
    """A burst of a sine about one place, of each example: where it is found, and how high, for ratios over the whole range."""
    t, at, frequency = 6000, 3500, 0.05
    n = np.arange(t)
    burst = np.exp(-0.5 * ((n - at) / 150) ** 2) * np.sin(2 * np.pi * frequency * (n - at))
    x = np.tile(np.float32(burst)[:, None], (64, 1, 1))
    y, ratio = (np.asarray(v) for v in jax.jit(augment.detune, static_argnums=2)(jax.random.key(0), x, 5.0))
    assert y.shape[1] >= t * 2 ** (5 / 12) - 1 and ratio.min() < 0.8 and ratio.max() > 1.28 and len(np.unique(ratio)) > 20
    places = (np.arange(y.shape[1]) * y[..., 0] ** 2).sum(1) / (y[..., 0] ** 2).sum(1)
    np.testing.assert_allclose(places, at / ratio, atol=0.5)
    heard = np.abs(np.fft.rfft(y[..., 0], 1 << 16)).argmax(1) / (1 << 16)
    np.testing.assert_allclose(heard, frequency * ratio, rtol=2e-3)
    hop = 50
    power = (y[:, :y.shape[1] // hop * hop, 0] ** 2).reshape(64, -1, hop).sum(-1, keepdims=True)
    back = np.asarray(augment.in_place(power, ratio, t // hop))[..., 0]
    assert back.shape == (64, t // hop)
    np.testing.assert_allclose((back * (np.arange(t // hop) + 0.5)).sum(1) / back.sum(1), at / hop, atol=0.6)


@pytest.mark.parametrize("samples", [1, 1000])
def test_silence_stays_finite_and_all_at_once_works(samples):
    needed = augment.source_samples(ALL, samples)
    fields = dataclasses.asdict(ALL)
    for x in (np.zeros((4, needed, 2), np.float32), noise(4, needed, 2)):
        y = made(x, samples, **fields)
        assert y.shape == (4, samples, 2) and y.dtype == np.float32 and np.isfinite(y).all()
    assert np.abs(made(np.zeros((4, needed, 2), np.float32), samples, **fields)).max() < 2.0**-15


def test_all_off_is_the_crop():
    x = noise(3, 100, 2)
    np.testing.assert_array_equal(made(x), x)
    np.testing.assert_array_equal(made(x, 80), x[:, :80])


@pytest.mark.parametrize("fields, words", [
    ({"allpass": 1.2}, "augment.allpass is 1.2"), ({"mute": -0.1}, "0..1"), ({"allpass_low_hz": 3000.0}, "should rise"),
    ({"allpass_high_hz": 24000.0}, "half the sample rate"), ({"allpass_radius": 1.0}, "radius"), ({"compress_ratio": 0.5}, "compress_ratio"),
    ({"gain_low_db": 9.0}, "exceeds"), ({"pitch_semitones": 30.0}, "24"), ({"pitch": 0.5}, "1292 are needed")])
def test_user_mistakes_are_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        augment.augment(jax.random.key(0), noise(2, 900, 1), RATE, dataclasses.replace(OFF, **fields))
