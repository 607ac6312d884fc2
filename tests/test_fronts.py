"""What a model sees of sounds: spectrograms against librosa, both normalisations there and back, and the pitch of a tone."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from vae_jax import fronts
from vae_jax.config import UserError
from vae_jax.dsp import stft
from vae_jax.media import sounds
from vae_jax.record_format import Field, Spec

RATE = 22050


def spec_of(samples, rate=RATE, reference_db=-6.0):
    return Spec("toy", {"audio": Field((samples, 1), "int16")}, {"train": 1}, "", {"rate": rate, "peak": 0.5, "reference_db": reference_db})


def tone(hz, samples, rate=RATE, amplitude=0.5):
    return (32767 * amplitude * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).astype(np.int16)[None, :, None]


def noisy(seed, samples):
    """Three clips of decaying noise, of very different loudness."""
    rng = np.random.default_rng(seed)
    shape = np.exp(-np.arange(samples) / samples * rng.uniform(0.5, 6, (3, 1))) * np.array([[0.3], [0.03], [0.003]])
    return (32767 * np.clip(shape * rng.standard_normal((3, samples)), -1, 1)).astype(np.int16)[..., None]


@pytest.mark.parametrize("normalise", fronts.NORMALISATIONS)
def test_a_spectrogram_is_librosas_in_decibels(normalise):
    front = fronts.get(spec_of(16317), fronts.Sound(normalise=normalise), 16)
    assert front.shape == (256, 64, 1) and front.kind == "audio" and front.rate == RATE
    audio = noisy(0, 16317)
    found = np.asarray(jax.jit(front.analyse)({"audio": audio}))[..., 0]
    for clip, picture in zip(audio[..., 0], found):
        amplitude = np.abs(librosa.stft(clip.astype(np.float64) / 32768, n_fft=512, hop_length=256)) / 128
        db = 20 * np.log10(np.maximum(amplitude[:256], 1e-12))
        white = db.max() if normalise == "peak" else -6.0
        np.testing.assert_allclose(picture, np.clip((db - white + 80) / 80, 0, 1), atol=2e-4)


@pytest.mark.parametrize("normalise", fronts.NORMALISATIONS)
def test_decibels_are_normalised_and_back_within_a_thousandth(normalise):
    """Row C5. Of every pixel the picture does not cut off: white - range + range * x, white being the clip's own by its level."""
    front, audio = fronts.get(spec_of(16317), fronts.Sound(normalise=normalise), 16), {"audio": noisy(2, 16317)}
    x, level = np.asarray(front.analyse(audio)), front.level and np.asarray(front.level(audio))
    amplitude = stft.magnitude(stft.stft(fronts.wave(audio), 512, 256)) / stft.full_scale(512)
    db = np.swapaxes(stft.to_db(amplitude[..., :256], -300.0), 1, 2)
    kept = (x[..., 0] > 0) & (x[..., 0] < 1)
    assert kept.mean() > 0.2
    assert np.abs(sounds.decibels(x, level, front.range_db) - 6.0 - db)[kept].max() < 1e-3  # spec_of's white lies at -6 dB


def test_a_level_restores_what_peak_normalisation_took():
    front = fronts.get(spec_of(8192), fronts.Sound(normalise="peak"))
    loud, quiet = noisy(1, 8192)[:1], (noisy(1, 8192)[:1] // 10)
    x, level = (jnp.concatenate([f({"audio": a}) for a in (loud, quiet)]) for f in (front.analyse, front.level))
    np.testing.assert_allclose(level[0] - level[1], 20 / 80, atol=5e-3)
    waves = front.sound(x, level, jax.random.key(0))
    levels = np.sqrt(np.mean(np.square(waves), 1))
    assert 20 * np.log10(levels[0] / levels[1]) == pytest.approx(20, abs=0.5)
    np.testing.assert_allclose(levels[0], np.sqrt(np.mean(np.square(loud / 32768.0))), rtol=0.1)
    assert fronts.get(spec_of(8192), fronts.Sound()).level is None


@pytest.mark.parametrize("settings", [fronts.Sound(), fronts.Sound(normalise="peak"), fronts.Sound(mel=96)])
def test_a_tone_returns_at_its_pitch(settings):
    front = fronts.get(spec_of(RATE), settings, 16)
    batch = {"audio": tone(1000, RATE)}
    x, quiet = (np.asarray(front.analyse({"audio": tone(1000, RATE) // part})) for part in (1, 10))
    wave = np.asarray(front.sound(x, front.level and front.level(batch), jax.random.key(0)))[0]
    assert wave.shape == (RATE,)
    if settings.normalise == "fixed":  # bands are as loud as bins: a tone of them all is within a few dB of what a bin says
        assert 0.85 < x.max() <= 1.0 and x.max() - quiet.max() == pytest.approx(20 / 80, abs=0.01)
    spectrum = np.abs(np.fft.rfft(wave[2000:-2000] * np.hanning(RATE - 4000), 2**18))
    hz = spectrum.argmax() * RATE / 2**18
    assert abs(hz - 1000) < (2 if not settings.mel else 40), hz  # a mel band near 1 kHz is 40 Hz wide


def test_silence_is_black_and_stays_silent():
    for normalise in fronts.NORMALISATIONS:
        front = fronts.get(spec_of(4000, 8000), fronts.Sound(256, 128, normalise=normalise), 8)
        batch = {"audio": np.zeros((2, 4000, 1), np.int16)}
        x, level = front.analyse(batch), front.level and front.level(batch)
        assert front.shape == (128, 32, 1) and np.isfinite(x).all()
        assert not np.any(x) and not np.any(front.sound(x, level, jax.random.key(0)))
        gradient = jax.grad(lambda a, f=front: jnp.sum(f.analyse({"audio": a})))(jnp.zeros((1, 4000, 1)))
        assert np.isfinite(gradient).all()


def test_pictures_are_scaled_on_the_device():
    front = fronts.get(Spec("toy", {"image": Field((2, 2, 1), "uint8")}, {"train": 1}), fronts.Sound())
    np.testing.assert_array_equal(front.analyse({"image": np.full((1, 2, 2, 1), 255, np.uint8)}), 1.0)
    assert front.kind == "image" and front.sound is None


@pytest.mark.parametrize("settings, multiple, says", [
    (fronts.Sound(normalise="file"), 1, "normalise='file'"), (fronts.Sound(n_fft=200, hop=100), 16, "does not halve 4 times"),
    (fronts.Sound(n_fft=511), 1, "n_fft=511 must be even"), (fronts.Sound(hop=600), 1, "hop=600")])
def test_settings_that_do_not_fit_are_sentences(settings, multiple, says):
    with pytest.raises(UserError, match=says):
        fronts.get(spec_of(8000), settings, multiple)
    with pytest.raises(UserError, match="neither pictures nor sounds"):
        fronts.get(Spec("toy", {"x": Field((2,), "float32")}, {"train": 1}), settings)
