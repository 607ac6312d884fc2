"""Griffin-Lim against librosa from the same phases, its spectral convergence on spoken digits, and the pitch of tones that go through it."""

import io
import zipfile

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile

from vae_jax.config import UserError
from vae_jax.dsp.griffin_lim import griffin_lim, predicted_phases
from vae_jax.dsp.stft import magnitude, stft

magnitudes = jax.jit(lambda x, n_fft, hop, window=None: magnitude(stft(x, n_fft, hop, window)), static_argnums=(1, 2, 3))


def convergence(wave, target, n_fft, hop):
    """||target - |STFT(wave)||| / ||target|| [b]: 0 is perfect."""
    return np.linalg.norm(magnitudes(wave, n_fft, hop) - target, axis=(-2, -1)) / np.linalg.norm(target, axis=(-2, -1))


@pytest.fixture(scope="module")
def digits(data_dir):
    """The official test split, index 0 to 4, all 300 clips padded to the longest: [300, t] at 8 kHz."""
    with zipfile.ZipFile(data_dir / "fsdd" / "recordings.zip") as held:
        names = sorted(name for name in held.namelist() if int(name.removesuffix(".wav").split("_")[-1]) < 5)
        clips = [soundfile.read(io.BytesIO(held.read(name)), dtype="float32")[0] for name in names]
    assert len(clips) == 300
    return np.stack([np.pad(clip, (0, max(map(len, clips)) - len(clip))) for clip in clips])


@pytest.mark.parametrize(
    "n_fft, hop, window_length, length, settings",
    [(512, 256, None, 16267, {}), (512, 128, None, 9001, {}), (400, 100, 300, 7777, {}), (1024, 300, None, 8350, {}),
     (512, 256, None, 16317, {"least": 0.0}), (512, 256, None, 16368, {"least": 0.0})],
)
def test_five_iterations_are_librosas_from_the_same_phases(data_dir, n_fft, hop, window_length, length, settings):
    """With `least` as it is where no sample lies under one tail alone; with the exact inverse where some do, too."""
    for pattern, start in (("music/electronic/*.ogg", 1_000_000), ("music/orchestral/*.ogg", 500_000), ("speech/*/*.flac", 20_000)):
        wave, _ = soundfile.read(min(data_dir.glob(pattern)), frames=length, start=start, dtype="float32", always_2d=True)
        target = np.array(magnitudes(wave.mean(1), n_fft, hop, window_length))
        same = {"hop_length": hop, "win_length": window_length, "n_fft": n_fft, "length": length}
        theirs = librosa.griffinlim(target.T, n_iter=5, momentum=0.99, init="random", random_state=3, **same)
        phases = 2 * np.pi * np.random.RandomState(3).random(size=target.T.shape).T
        ours = griffin_lim(target, hop, length, 5, 0.99, phases=phases, window_length=window_length, **settings)
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


def test_matrix_products_give_the_same_as_the_fft():
    x = np.random.default_rng(0).normal(size=(2, 1500)).astype(np.float32)
    target, key = magnitudes(x, 64, 16), jax.random.key(0)
    first, second = (griffin_lim(target, 16, 1500, 5, key=key, form=form) for form in ("rfft", "matmul"))
    np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())


@pytest.mark.parametrize("hop, every", [(128, 1), (256, 6)])
def test_spectral_convergence_on_spoken_digits(digits, hop, every):
    digits = digits[::every]
    target = magnitudes(digits, 512, hop)
    found = convergence(griffin_lim(target, hop, digits.shape[1], key=jax.random.key(0)), target, 512, hop)
    assert found.mean() <= 0.03 and np.median(found) <= 0.03 and found.max() <= 0.12


def test_predicted_phases_are_far_nearer_than_random_ones(digits):
    target = magnitudes(digits[::20], 512, 128)
    random = jax.random.uniform(jax.random.key(1), target.shape, maxval=2 * jnp.pi)
    for iterations, share in ((0, 0.35), (20, 0.6)):
        predicted, drawn = (
            convergence(griffin_lim(target, 128, digits.shape[1], iterations, **start), target, 512, 128).mean()
            for start in ({"key": jax.random.key(1)}, {"phases": random})
        )
        assert predicted < share * drawn


def test_predicted_phases_of_a_sine_advance_at_its_frequency():
    hz, hop = 1234.5, 128
    target = magnitudes(np.sin(2 * np.pi * hz / 22050 * np.arange(22050)), 512, hop)
    phases = np.asarray(predicted_phases(target, jax.random.key(0), hop))
    top = round(hz / 22050 * 512)
    for k in (top - 1, top, top + 1):
        advance = np.diff(np.unwrap(phases[10:-10, k])) - 2 * np.pi * hz / 22050 * hop
        np.testing.assert_allclose((advance + np.pi) % (2 * np.pi) - np.pi, 0.0, atol=0.05)
    beside = phases[10:-10, top + 1] - phases[10:-10, top]  # a frame begins half a window before its centre: half a turn from bin to bin
    np.testing.assert_allclose(np.cos(beside), -1.0, atol=0.02)


def pitch(wave, rate):
    """Frequency of the strongest sine, Hz: a long Hann-windowed FFT, a parabola through the logarithms round its top."""
    n = 1 << 19
    log = np.log(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), n)) + 1e-30)
    k = log.argmax()
    before, top, behind = log[k - 1 : k + 2]
    return (k + 0.5 * (before - behind) / (before - 2 * top + behind)) * rate / n


@pytest.mark.parametrize("length, hop", [(22050, 256), (22050, 128), (16317, 256)])
def test_a_1_khz_tone_comes_back_at_1_khz(length, hop):
    tone = 0.5 * np.sin(2 * np.pi * 1000 / 22050 * np.arange(length))
    target = magnitudes(tone, 512, hop)
    waves = np.asarray(griffin_lim(jnp.broadcast_to(target, (8, *target.shape)), hop, length, key=jax.random.key(2)))
    for wave in waves:
        assert abs(pitch(wave, 22050) - 1000) < 2
        assert abs(wave[1000:-1000].std() / (0.5 / np.sqrt(2)) - 1) < 0.05
    assert np.abs(waves[0] - waves[1]).max() > 0.1


def test_without_momentum_the_error_never_grows():
    x = np.random.default_rng(3).normal(size=3210).astype(np.float32)
    target = magnitudes(x, 128, 32)
    phases = jax.random.uniform(jax.random.key(3), target.shape, maxval=2 * jnp.pi)
    course = [convergence(griffin_lim(target, 32, 3210, n, 0.0, phases=phases), target, 128, 32) for n in (0, 1, 2, 4, 8, 16)]
    assert np.all(np.diff(course) < 0)


def test_no_click_where_the_last_samples_lie_under_one_tail(data_dir):
    length = 20 * 256 + 255
    wave, _ = soundfile.read(min(data_dir.glob("music/rock/*.ogg")), frames=length, start=1_000_000, dtype="float32", always_2d=True)
    ours = griffin_lim(magnitudes(wave.mean(1), 512, 256), 256, length, key=jax.random.key(4))
    assert np.abs(ours).max() < 2.5 * np.abs(wave.mean(1)).max()


def test_level_silence_and_leading_axes():
    x = np.random.default_rng(5).normal(size=(2, 3, 1000)).astype(np.float32)
    target, key = magnitudes(x, 64, 16), jax.random.key(5)
    wave = griffin_lim(target, 16, 1000, 10, key=key)
    assert wave.shape == x.shape and wave.dtype == jnp.float32
    for scale in (1e-6, 1e5):
        np.testing.assert_allclose(griffin_lim(target * scale, 16, 1000, 10, key=key) / scale, wave, atol=1e-2 * np.abs(wave).max())
    np.testing.assert_array_equal(griffin_lim(jnp.zeros_like(target), 16, 1000, 10, key=key), 0.0)
    part = np.array(target)
    part[0, 1] = 0.0
    mixed = griffin_lim(part, 16, 1000, 10, key=key)
    assert np.isfinite(mixed).all() and np.abs(mixed[0, 1]).max() == 0 < np.abs(mixed[0, 0]).max()


def test_user_mistakes_are_one_sentence():
    target = jnp.ones((64, 257))
    with pytest.raises(UserError, match="64 frames"):
        griffin_lim(target, 256, 22050, key=jax.random.key(0))
    for wrong in ({}, {"key": jax.random.key(0), "phases": target}):
        with pytest.raises(UserError, match="exactly one"):
            griffin_lim(target, 256, 16317, **wrong)
    with pytest.raises(UserError, match="window"):
        griffin_lim(target, 256, 16317, key=jax.random.key(0), window_length=600)
