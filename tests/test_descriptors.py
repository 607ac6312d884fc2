"""Descriptors against librosa, tables of the standard, sounds of known pitch, and closed forms of the Fréchet distance."""

import warnings

import librosa
import numpy as np
import pytest
import scipy.linalg
import soundfile

from vae_jax.config import UserError
from vae_jax.dsp import descriptors


@pytest.fixture(scope="module")
def speech(data_dir):
    return soundfile.read(data_dir / "speech/one_speaker/ru_0004.flac")


@pytest.fixture(scope="module")
def music(data_dir):
    wave, rate = soundfile.read(sorted((data_dir / "music/orchestral").glob("*.ogg"))[0], frames=5 * 44100)
    return wave.mean(1), rate


def sine(hz, rate, seconds=1.0, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate + 0.1)


def cents(ours, theirs):
    return np.abs(1200 * np.log2(ours / theirs))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("hz", [41.3, 60.0, 110.0, 261.6, 440.0, 990.0, 1900.0])
def test_pitch_of_tones_and_of_bright_sounds(rate, hz):
    if hz > rate / 17:
        hz = rate / 17
    buzz = sum(sine(hz * k, rate) / k for k in range(1, 12) if hz * k < rate / 2)
    for wave, close in ((0.5 * sine(hz, rate), 0.5), (0.2 * buzz, 5.0), (0.2 * (buzz - sine(hz, rate)), 20.0)):  # the last lacks its fundamental
        found, voiced = descriptors.pitch(wave, rate)
        inside = slice(10, -10)
        assert len(found) == 1 + rate // descriptors.grid(rate)[1]
        assert voiced[inside].all() and cents(found[inside], hz).max() < close


def test_pitch_of_a_glide_is_that_at_the_middle_of_the_frame():
    rate = 48000
    hz = 100 * 4 ** (np.arange(2 * rate) / (2 * rate))
    found, voiced = descriptors.pitch(np.sin(2 * np.pi * np.cumsum(hz) / rate), rate)
    true = hz[np.minimum(np.arange(len(found)) * descriptors.grid(rate)[1], len(hz) - 1)]
    assert voiced[10:-10].all() and cents(found, true)[10:-10].max() < 5


def test_pitch_of_speech_is_librosas(speech):
    wave, rate = speech
    found, voiced = descriptors.pitch(wave, rate)
    theirs = librosa.yin(wave, fmin=40, fmax=1000, sr=rate, frame_length=1024, hop_length=descriptors.grid(rate)[1])
    assert len(found) == len(theirs) and 0.3 < voiced.mean() < 0.7
    apart = cents(found, theirs)[voiced]
    assert np.median(apart) < 12 and (apart < 100).mean() > 0.9  # their frames lie some ms earlier, which speech shows
    assert cents(np.median(found[voiced]), np.median(theirs[voiced])) < 30


def test_the_difference_function_is_the_sum_it_says():
    frames = np.random.default_rng(0).standard_normal((3, 41))
    wanted = [[((row[:20] - row[lag:lag + 20]) ** 2).sum() for lag in range(22)] for row in frames]
    np.testing.assert_allclose(descriptors._difference(frames, 20, 21), wanted, atol=1e-12)


def test_noise_and_silence_have_no_pitch():
    rate = 48000
    dither = np.random.default_rng(0).uniform(-(2.0**-16), 2.0**-16, rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for wave in (np.zeros(rate), dither, 0.1 * np.random.default_rng(1).standard_normal(rate), np.zeros(1), np.ones(1)):
            found, voiced = descriptors.pitch(wave, rate)
            assert np.isfinite(found).all() and voiced.mean() < 0.01
    clip = descriptors.of_clip(np.zeros(1000), rate)
    assert np.isnan(clip["pitch_hz"]) and np.isnan(clip["centroid_hz"]) and clip["voiced"] == 0 and np.isclose(clip["loudness_db"], -120)
    assert np.isnan(descriptors.centroid(dither, rate)).all()


def test_a_weighting_is_the_standards_table_and_librosas():
    table = {31.5: -39.4, 63: -26.2, 125: -16.1, 250: -8.6, 500: -3.2, 1000: 0.0, 2000: 1.2, 4000: 1.0, 8000: -1.1, 16000: -6.6}
    exact = 1000 * 10 ** (np.round(10 * np.log10(np.array(list(table)) / 1000)) / 10)  # the nominal frequencies are rounded
    np.testing.assert_allclose(20 * np.log10(descriptors.a_weighting(exact)), list(table.values()), atol=0.06)
    hz = np.geomspace(20, 20000, 50)
    np.testing.assert_allclose(20 * np.log10(descriptors.a_weighting(hz)), librosa.A_weighting(hz, min_db=None), atol=0.02)
    assert descriptors.a_weighting(0.0) == 0


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_loudness_of_sines_follows_the_weighting(rate):
    for hz, amplitude in ((1000, 1.0), (1000, 0.1), (125, 0.5), (5000, 0.5)):
        level = descriptors.loudness(sine(hz, rate, amplitude=amplitude), rate)[8:-8]
        np.testing.assert_allclose(level, 20 * np.log10(amplitude) + librosa.A_weighting(hz), atol=0.25)  # the weighting bends within a bin


def test_loudness_of_music_is_the_weighted_power_of_the_whole(music):
    wave, rate = music
    spectrum = np.fft.rfft(wave)
    hz = np.maximum(np.fft.rfftfreq(len(wave), 1 / rate), 0.01)
    weighted = np.fft.irfft(spectrum * 10 ** (librosa.A_weighting(hz, min_db=None) / 20), len(wave))
    assert abs(descriptors.of_clip(wave, rate)["loudness_db"] - 10 * np.log10(2 * np.mean(weighted**2))) < 0.1


def test_centroid_is_librosas(music, speech):
    for wave, rate in (music, speech):
        n_fft, hop = descriptors.grid(rate)
        theirs = librosa.feature.spectral_centroid(y=wave, sr=rate, n_fft=n_fft, hop_length=hop)[0]
        ours = descriptors.centroid(wave, rate)
        heard = np.isfinite(ours)
        assert heard.mean() > 0.8
        np.testing.assert_allclose(ours[heard], theirs[heard], rtol=1e-3)
        assert np.isclose(descriptors.of_clip(wave, rate)["centroid_hz"], ours[heard].mean())
    assert abs(np.median(descriptors.centroid(sine(3000, 48000), 48000)) - 3000) < 5


def test_clip_figures_of_a_note():
    rate = 44100
    wave = np.concatenate([np.zeros(rate // 2), 0.5 * sine(330, rate), np.zeros(rate // 2)])
    clip = descriptors.of_clip(wave, rate)
    assert cents(clip["pitch_hz"], 330) < 1 and abs(clip["voiced"] - 0.5) < 0.03
    assert abs(clip["loudness_db"] - (20 * np.log10(0.5) + librosa.A_weighting(330) - 3.01)) < 0.1


def rows(n, d, seed, spread=1.0):
    return np.random.default_rng(seed).standard_normal((n, d)) @ (np.diag(np.linspace(0.2, 2, d)) * spread) + seed


def test_frechet_of_commuting_covariances_is_the_closed_form():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    white = rng.standard_normal((500, 6))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False)).T)  # mean 0 and covariance 1, exactly
    s, t, shift = np.array([3, 2, 1, 1, 0.5, 0]), np.array([1, 2, 4, 1e-3, 0, 0]), np.arange(6.0)
    wanted = ((s - t) ** 2).sum() + (shift**2).sum()
    assert np.isclose(descriptors.frechet(white * s @ turn, (white * t + shift) @ turn), wanted, rtol=1e-9)


@pytest.mark.parametrize("d", [1, 5, 40])
def test_frechet_is_scipys(d):
    a, b = rows(300, d, 1), rows(200, d, 2) @ scipy.linalg.expm(0.3 * np.random.default_rng(0).standard_normal((d, d)) / np.sqrt(d))
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert np.isclose(descriptors.frechet(a, b), wanted, rtol=1e-7) and np.isclose(descriptors.frechet(b, a), wanted, rtol=1e-7)


def test_frechet_of_the_same_rows_is_0_also_where_they_span_little():
    for a in (rows(300, 8, 3), rows(4, 30, 3), np.tile(rows(1, 5, 3), (10, 1))):
        assert 0 <= descriptors.frechet(a, a) < 1e-9
        assert np.isclose(descriptors.frechet(a, a + 2), 4 * a.shape[1])
    with pytest.raises(ValueError, match="two rows"):
        descriptors.frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_user_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="widen the range"):
        descriptors.pitch(np.ones(100), 8000, 500.0, 400.0)
    for wave in (np.zeros((2, 100)), np.zeros(0)):
        with pytest.raises(UserError, match="one channel"):
            descriptors.of_clip(wave, 8000)
