"""STFT, inverse, mel bands and decibels against librosa on real clips, and against closed forms."""

import io
import warnings
import zipfile

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile

from vae_jax.config import UserError
from vae_jax.dsp import stft as dsp

SETTINGS = [(512, 256, None), (512, 128, None), (2048, 512, 1201), (1024, 300, 800), (256, 101, None), (64, 64, 33), (512, 700, None)]
FORMS = [(*setting, "rfft") for setting in SETTINGS] + [(*setting, "matmul") for setting in SETTINGS[1:4]]

stft = jax.jit(dsp.stft, static_argnums=(1, 2, 3, 4))
istft = jax.jit(dsp.istft, static_argnums=(1, 2, 3, 4, 5))


@pytest.fixture(scope="module")
def clips(data_dir):
    """One second and more of rock, a speaker, and a spoken digit."""
    found = []
    for pattern, start in (("music/rock/*.ogg", 1_000_000), ("speech/*/*.flac", 20_000)):
        wave, _ = soundfile.read(min(data_dir.glob(pattern)), frames=20001, start=start, dtype="float32", always_2d=True)
        found.append(wave.mean(1))
    with zipfile.ZipFile(data_dir / "fsdd" / "recordings.zip") as held:
        found.append(soundfile.read(io.BytesIO(held.read("7_jackson_0.wav")), dtype="float32")[0])
    return found


def theirs(x, n_fft, hop, window_length):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # n_fft longer than the clip
        return librosa.stft(x, n_fft=n_fft, hop_length=hop, win_length=window_length).T


def near(ours, reference, share, peak):
    assert np.shape(ours) == np.shape(reference)
    assert np.max(np.abs(ours - reference)) <= share * max(peak, 1e-12)


@pytest.mark.parametrize("n_fft, hop, window_length, form", FORMS)
def test_stft_is_librosas(clips, n_fft, hop, window_length, form):
    music, speech, digit = clips
    for x in (music, speech, digit[:301], digit[1000:1001]):
        ours = stft(x, n_fft, hop, window_length, form)
        assert ours.dtype == jnp.complex64 and ours.shape == (1 + len(x) // hop, n_fft // 2 + 1)
        near(ours, theirs(x, n_fft, hop, window_length), 1e-4, np.abs(x).max())


@pytest.mark.parametrize("n_fft, hop, window_length, form", FORMS)
def test_istft_is_librosas_also_for_spectra_of_no_signal(clips, n_fft, hop, window_length, form):
    rng = np.random.default_rng(0)
    for clip in clips[:2]:
        whole = len(clip) // hop * hop + hop // 4  # the last sample well inside a window
        x = np.pad(clip, (0, hop))[:whole]
        spectrum = theirs(x, n_fft, hop, window_length)
        spectrum = spectrum * np.exp(0.5j * rng.normal(size=spectrum.shape)) * rng.uniform(0.5, 1.5, spectrum.shape)
        spectrum = spectrum.astype(np.complex64)
        for length in (whole, whole - 77, whole + 3 * n_fft):
            expected = librosa.istft(spectrum.T, n_fft=n_fft, hop_length=hop, win_length=window_length, length=length)
            ours = np.asarray(istft(spectrum, hop, length, window_length, form))
            inside = support(len(spectrum), n_fft, hop, window_length, length)
            near(ours * inside, expected * inside, 1e-4, np.abs(x).max())
            assert np.isfinite(ours).all()


def support(count, n_fft, hop, window_length, length):
    """Samples where the squared windows add up to more than 1e-4: elsewhere a division by next to nothing magnifies the rounding of both."""
    window = librosa.util.pad_center(librosa.filters.get_window("hann", window_length or n_fft), size=n_fft)
    total = np.zeros(count * hop + n_fft + length)
    for i in range(count):
        total[i * hop : i * hop + n_fft] += window**2
    return total[n_fft // 2 : n_fft // 2 + length] > 1e-4


@pytest.mark.parametrize("n_fft, hop, window_length, form", [s for s in FORMS if s[1] < (s[2] or s[0])])
def test_the_inverse_returns_the_signal(clips, n_fft, hop, window_length, form):
    for x in clips[:2]:
        x = x[: (len(x) // hop - 1) * hop + 1 + hop // 4]
        back = istft(stft(x, n_fft, hop, window_length, form), hop, len(x), window_length, form)
        near(back, x, 1e-4, np.abs(x).max())


def test_leading_axes_and_the_published_shape():
    x = np.random.default_rng(1).normal(size=(2, 3, 16317)).astype(np.float32)
    spectrum = stft(x, 512, 256)
    assert spectrum.shape == (2, 3, 64, 257)
    np.testing.assert_allclose(spectrum[1, 2], dsp.stft(x[1, 2], 512, 256), atol=1e-4)
    back = istft(spectrum, 256, 16317)
    assert back.shape == x.shape
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_frames_and_overlap_add_against_loops():
    rng = np.random.default_rng(2)
    for size, hop, count, before in ((8, 4, 5, 0), (8, 3, 4, 4), (5, 7, 3, 2)):
        x = rng.normal(size=(2, 20)).astype(np.float32)
        padded = np.pad(x, ((0, 0), (before, 40)))
        expected = np.stack([padded[:, i * hop : i * hop + size] for i in range(count)], 1)
        np.testing.assert_array_equal(dsp.frame(x, size, hop, count, before), expected)
        total = np.zeros((2, 100))
        for i in range(count):
            total[:, i * hop : i * hop + size] += expected[:, i]
        added = np.asarray(dsp.overlap_add(jnp.asarray(expected), hop))
        assert added.shape[-1] >= (count - 1) * hop + size
        np.testing.assert_allclose(added, total[:, : added.shape[-1]], atol=1e-6)


def test_imaginary_parts_at_zero_and_nyquist_do_not_count():
    rng = np.random.default_rng(3)
    spectrum = (rng.normal(size=(6, 33)) + 1j * rng.normal(size=(6, 33))).astype(np.complex64)
    real = spectrum.copy()
    real[:, [0, -1]] = real[:, [0, -1]].real
    for form in ("rfft", "matmul"):
        np.testing.assert_allclose(dsp.istft(spectrum, 16, 80, form=form), librosa.istft(real.T, hop_length=16, length=80), atol=1e-5)


def test_least_bounds_the_last_samples_and_leaves_the_others():
    x = np.random.default_rng(4).normal(size=2 * 256 + 255).astype(np.float32)
    turned = dsp.stft(x, 512, 256) * 1j
    exact, bounded = (np.asarray(dsp.istft(turned, 256, len(x), least=least)) for least in (0.0, 0.05))
    assert np.abs(exact).max() > 20 * np.abs(x).max() > 4 * np.abs(bounded).max()
    np.testing.assert_array_equal(exact[:600], bounded[:600])


def test_gradients_are_finite_at_silence_and_right_elsewhere():
    rng = np.random.default_rng(5)
    x, direction = (rng.normal(size=200).astype(np.float32) for _ in range(2))
    numeric = [np.abs(librosa.stft(np.float64(x + h * direction), n_fft=64, hop_length=16)).sum() for h in (1e-4, -1e-4)]
    for form in ("rfft", "matmul"):
        slope = jax.jit(jax.grad(lambda x, form=form: jnp.sum(dsp.magnitude(dsp.stft(x, 64, 16, form=form)))))
        np.testing.assert_array_equal(slope(np.zeros(200, np.float32)), 0.0)
        np.testing.assert_allclose(np.vdot(slope(x), direction), (numeric[0] - numeric[1]) / 2e-4, rtol=1e-3)
    quiet = np.concatenate([np.zeros(100, np.float32), 1e-3 * x[100:]])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(dsp.to_db(dsp.magnitude(dsp.stft(x, 64, 16)), -100.0))))(quiet)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_a_full_scale_sine_reads_0_db():
    t = np.arange(22050)
    for window_length in (512, 400):
        x = np.sin(2 * np.pi * 20 / 512 * t)
        level = dsp.magnitude(dsp.stft(x, 512, 128, window_length)) / dsp.full_scale(window_length)
        np.testing.assert_allclose(dsp.to_db(level, -100.0)[10:-10].max(-1), 0.0, atol=1e-3)
    worst = dsp.magnitude(dsp.stft(np.sin(2 * np.pi * 20.5 / 512 * t), 512, 128)) / dsp.full_scale(512)
    np.testing.assert_allclose(dsp.to_db(worst, -100.0)[10:-10].max(-1), -1.42, atol=0.01)


def test_decibels_are_librosas_and_go_back(clips):
    for x in clips:
        amplitude = np.abs(theirs(x, 512, 256, None))
        expected = librosa.amplitude_to_db(amplitude, ref=1.0, amin=1e-10, top_db=80.0)
        ours = dsp.to_db(dsp.magnitude(stft(x, 512, 256)), expected.max() - 80.0)
        assert np.abs(ours - expected).max() <= 0.01
        np.testing.assert_allclose(dsp.from_db(ours), np.maximum(amplitude, amplitude.max() * 1e-4), rtol=1e-3)
    floors = jnp.array([-80.0, -60.0])[:, None]
    np.testing.assert_allclose(dsp.to_db(jnp.array([[0.0, 1.0], [1e-4, 10.0]]), floors), [[-80.0, 0.0], [-60.0, 20.0]], atol=1e-5)


@pytest.mark.parametrize(
    "rate, n_fft, bands, low, high", [(22050, 512, 64, 0, 11025), (8000, 512, 40, 50, 4000), (44100, 2048, 128, 20.5, 16000), (8000, 256, 20, 0, 900)]
)
def test_mel_is_librosas(clips, rate, n_fft, bands, low, high):
    filters = dsp.mel_filters(rate, n_fft, bands, low, high)
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands, fmin=low, fmax=high).T
    assert filters.shape == expected.shape and filters.dtype == np.float32
    np.testing.assert_allclose(filters, expected, rtol=1e-5, atol=1e-8)
    for x in clips:
        ours = dsp.mel(dsp.magnitude(stft(x, n_fft, n_fft // 4)), filters)
        reference = librosa.feature.melspectrogram(
            y=x, sr=rate, n_fft=n_fft, hop_length=n_fft // 4, power=1, n_mels=bands, fmin=low, fmax=high, pad_mode="constant"
        ).T
        near(ours, reference, 1e-4, np.abs(x).max())


@pytest.mark.parametrize("rate, n_fft, bands", [(22050, 512, 64), (22050, 1024, 80)])
def test_mel_inverse_gives_the_mel_back(clips, rate, n_fft, bands):
    filters = dsp.mel_filters(rate, n_fft, bands, 0, rate / 2)
    for x in clips:
        linear = dsp.magnitude(stft(x, n_fft, n_fft // 4))
        target = dsp.mel(linear, filters)
        found = jax.jit(dsp.mel_inverse)(target, filters)
        assert np.min(found) >= 0 and np.linalg.norm(found - linear) < 0.5 * np.linalg.norm(linear)
        assert np.linalg.norm(dsp.mel(found, filters) - target) <= 1e-4 * np.linalg.norm(target)
    np.testing.assert_array_equal(dsp.mel_inverse(jnp.zeros((3, bands)), filters), 0.0)


@pytest.mark.parametrize("pair", [((440.0, 0.6), (1234.5, 0.25)), ((100.0, 0.1), (5000.0, 0.8))])
def test_a_mix_of_two_sines_gives_both_back(pair):
    """Frequency: the peak bin. Amplitude: Parseval over the main lobe, which holds 99.9 % of a sine's energy wherever it lies between bins."""
    rate, n_fft, t = 22050, 4096, np.arange(22050) / 22050
    power = np.square(dsp.magnitude(dsp.stft(sum(a * np.sin(2 * np.pi * hz * t) for hz, a in pair), n_fft, 1024)))[3:-3].mean(0)
    window_energy = n_fft * 3 / 8
    for hz, amplitude in pair:
        near_it = np.arange(max(0, int(hz / rate * n_fft) - 20), int(hz / rate * n_fft) + 20)
        top = near_it[power[near_it].argmax()]
        assert abs(top * rate / n_fft - hz) <= rate / n_fft
        found = 2 * np.sqrt(power[top - 3 : top + 4].sum() / (n_fft * window_energy))
        assert abs(found / amplitude - 1) < 0.02


def test_user_mistakes_are_one_sentence():
    x = np.zeros(100, np.float32)
    for wrong in (lambda: dsp.stft(x, 511, 256), lambda: dsp.stft(x, 512, 0), lambda: dsp.stft(x, 512, 256, 513), lambda: dsp.stft(x, 512, 256, 1)):
        with pytest.raises(UserError, match="n_fft must be even"):
            wrong()
    with pytest.raises(UserError, match="without samples"):
        dsp.stft(x[:0], 512, 256)
    with pytest.raises(UserError, match="form"):
        dsp.stft(x, 512, 256, form="dft")
    with pytest.raises(UserError, match="at least 1"):
        dsp.istft(np.zeros((3, 9), np.complex64), 4, 0)
    with pytest.raises(UserError, match="half the sample rate"):
        dsp.mel_filters(8000, 512, 40, 0, 8000)
    with pytest.raises(UserError, match="fewer bands"):
        dsp.mel_filters(22050, 512, 256, 0, 11025)


@pytest.mark.parametrize("n", [2, 8, 30])
def test_gradient_of_the_real_transform(n):
    x, slope = np.random.default_rng(n).standard_normal((2, 3, n)), np.random.default_rng(1).standard_normal((2, 3, n // 2 + 1, 2))
    weigh = lambda transform: lambda x: jnp.sum(transform(x).real * slope[..., 0] + transform(x).imag * slope[..., 1])
    found = jax.grad(weigh(dsp.rfft))(jnp.float32(x))
    basis = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n // 2 + 1)) / n)
    wanted = np.einsum("bfk,jk->bfj", slope[..., 0], basis.real) + np.einsum("bfk,jk->bfj", slope[..., 1], basis.imag)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
