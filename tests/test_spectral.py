"""Spectral distances against SciPy's STFT and by their behaviour: equality, shifts, octaves, silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.losses import spectral

RATE = 16000


def tone(hz, phase=0.0, n=8192, level=0.3):
    return jnp.asarray(level * np.sin(2 * np.pi * hz * np.arange(n) / RATE + phase), jnp.float32)[None]


def scipy_magnitude(x, window):
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (window // 2, window // 2)), mode="reflect")
    spectrum = scipy.signal.stft(padded, window="hann", nperseg=window, noverlap=window - window // 4, boundary=None, padded=False)[2]
    return np.abs(spectrum).swapaxes(1, 2) * window / 2  # SciPy divides by the sum of the window


@pytest.mark.parametrize("definition", spectral.DEFINITIONS)
def test_definitions_against_scipy(definition):
    rng = np.random.default_rng(0)
    x, y = (np.float32(0.1 * rng.standard_normal((3, 5000))) for _ in range(2))
    wanted, wanted_each = 0.0, np.zeros(3)
    for window in spectral.WINDOWS:
        s, z = scipy_magnitude(x, window), scipy_magnitude(y, window)
        for axes in (None, (1, 2)):
            ratio = np.mean((s - z) ** 2, axis=axes) / np.mean(s**2, axis=axes)
            if definition == "squared":
                found = ratio + np.mean(np.abs(np.log(s + 1e-7) - np.log(z + 1e-7)), axis=axes)
            else:
                found = np.sqrt(ratio) + np.log(1 + np.mean(np.abs(s - z), axis=axes) / spectral.EQUAL)
            if axes is None:
                wanted += found
            else:
                wanted_each += found
    np.testing.assert_allclose(spectral.distance(x, y, definition), wanted, rtol=2e-5)
    np.testing.assert_allclose(spectral.distance(x, y, definition, each=True), wanted_each, rtol=2e-5)


@pytest.mark.parametrize("definition", spectral.DEFINITIONS)
def test_least_at_equality_small_for_a_shift_large_for_an_octave(definition):
    rng = np.random.default_rng(1)
    x = jnp.asarray(scipy.signal.lfilter([1.0], [1.0, -0.95], 0.03 * rng.standard_normal((2, 8192))), jnp.float32)
    distance = lambda a, b: float(spectral.distance(a, b, definition))
    assert 0 <= distance(x, x) < 1e-5
    shifted, halved = distance(tone(440), tone(440, 2 * np.pi * 440 / RATE)), distance(tone(440), 0.5 * tone(440))
    octave, silent = distance(tone(440), tone(880)), distance(tone(440), 0 * tone(440))
    assert shifted < 0.1 * octave and shifted < halved < min(octave, silent)
    assert distance(x[:, :-1], x[:, 1:]) < 0.2 * distance(x, jnp.roll(x[::-1], 4000, 1))


@pytest.mark.parametrize("definition", spectral.DEFINITIONS)
@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0])
def test_gradients_are_finite_at_silence_and_at_equality(definition, level):
    x = level * tone(440)
    for target, made in ((x, x), (jnp.zeros_like(x), x), (x, jnp.zeros_like(x))):
        value, slope = jax.value_and_grad(lambda y: spectral.distance(target, y, definition))(made)
        assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("definition", spectral.DEFINITIONS)
def test_the_gradient_is_that_of_differences(definition):
    with jax.enable_x64(True):
        x, y, v = (jnp.asarray(0.1 * np.random.default_rng(i).standard_normal((1, 3000))) for i in range(3))
        f = lambda t: spectral.distance(x, y + t * v, definition, windows=(512, 128))
        slope, h = float(jax.grad(f)(0.0)), 1e-7
        assert slope == pytest.approx(float((f(h) - f(-h)) / (2 * h)), rel=1e-4)


def test_too_short_a_signal_and_an_unknown_definition_are_said():
    with pytest.raises(UserError, match="longer crops"):
        spectral.distance(jnp.zeros((1, 900)), jnp.zeros((1, 900)))
    with pytest.raises(UserError, match="frobenius"):
        spectral.distance(tone(440), tone(440), "paper")


def test_devices_transform_their_own_rows():
    mesh = meshes.make(4)
    x, y = (jax.device_put(np.float32(np.random.default_rng(i).standard_normal((8, 600))), meshes.batched(mesh)) for i in (0, 1))
    slope = jax.jit(jax.grad(lambda y, x: spectral.distance(x, y, windows=(64, 32))))
    compiled = slope.lower(y, x).compile().as_text()
    assert "all-reduce(" in compiled and "all-gather(" not in compiled
    alone = jax.jit(jax.grad(lambda y, x: spectral.distance(x, y, windows=(64, 32))))(*(jnp.asarray(np.asarray(a)) for a in (y, x)))
    np.testing.assert_allclose(slope(y, x), alone, atol=1e-6)


def test_level_error_against_scipy_and_silence_that_is_not_heard():
    rng = np.random.default_rng(3)
    x, y = (np.float32(scale * rng.standard_normal((2, 4000))) for scale in (0.1, 0.02))
    levels = [np.maximum(20 * np.log10(scipy_magnitude(a, 512)[..., 128:] / 128), -80) for a in (x, y)]  # from 4,000 Hz on
    wanted = np.sqrt(((levels[0] - levels[1]) ** 2).mean((1, 2)))
    np.testing.assert_allclose(spectral.error_db(x, y, RATE, 4000.0, 512), wanted, rtol=1e-4)
    padded, noise = np.pad(x, ((0, 0), (0, 12_000))), np.float32(rng.integers(-1, 2, (2, 16_000)) / 32768)
    clips = lambda a, b: np.asarray(spectral.of_clips(a[..., None], b[..., None], RATE, 0, "squared", (512, 128), 4000.0)["distance"])
    assert clips(padded, padded + noise).max() < 0.5, "a bit of noise in digital silence is no distance"


@pytest.mark.parametrize("definition", spectral.DEFINITIONS)
def test_what_a_short_recording_is_filled_up_with_counts_for_nothing(definition):
    """Frames whose middle is no later than its end, against SciPy's; of whole crops all."""
    rng, valid = np.random.default_rng(4), np.array([1500, 4000, 1])
    x, y = (np.float32(0.1 * rng.standard_normal((3, 4000, 2))) for _ in range(2))
    x = np.where(np.arange(4000)[:, None] < valid[:, None, None], x, np.float32(0))
    found = spectral.of_clips(x, y, RATE, 0, definition, (512, 128), 4000.0, valid)
    spectra = {window: np.float32(rng.uniform(0, 3, window // 2 + 1)) for window in (512, 128)}
    blind = spectral.from_spectra(spectral.rows(x), spectra, "squared", np.repeat(valid, 2))
    for i, n in enumerate(valid):
        wanted, wanted_blind, wanted_db = np.zeros(2), np.zeros(2), np.zeros(2)
        for window in (512, 128):
            s, z = (scipy_magnitude(a[i].T, window)[:, :1 + n // (window // 4)] for a in (x, y))
            mean = lambda a: a.mean((1, 2))
            for total, made, kind in ((wanted, z, definition), (wanted_blind, spectra[window], "squared")):
                ratio = mean((s - made) ** 2) / np.maximum(mean(s**2), spectral.SILENCE)
                total += (ratio + mean(np.abs(np.log((s + spectral.HEARD) / (made + spectral.HEARD)))) if kind == "squared" else
                          np.sqrt(ratio) + np.log1p(mean(np.abs(s - made)) / spectral.EQUAL))
            if window == 512:
                levels = [20 * np.log10(np.maximum(a, 128e-4) / 128) for a in (s, z)]
                wanted_db = np.sqrt(mean((levels[0] - levels[1]) ** 2))
        assert found["distance"][i] == pytest.approx(wanted.mean(), rel=1e-4) and found["error_db"][i] == pytest.approx(wanted_db.mean(), rel=1e-3)
        np.testing.assert_allclose(blind[2 * i:2 * i + 2], wanted_blind, rtol=1e-4)
    whole = spectral.of_clips(x, y, RATE, 0, definition, (512, 128), 4000.0)
    assert whole["distance"][1] == pytest.approx(float(found["distance"][1]), rel=1e-6)
    assert abs(whole["distance"][0] / found["distance"][0] - 1) > 0.1
