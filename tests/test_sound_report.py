"""What users see and hear of sounds: files, colours, joined pieces and the report, on tones whose spectrograms are known."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import toys
from PIL import Image
from sklearn import metrics

from vae_jax import fronts, report
from vae_jax.latents import pca
from vae_jax.media import figures, images, sounds
from vae_jax.tasks import Task

RATE, SAMPLES = toys.RATE, toys.SAMPLES
SETTINGS = dict(n_fft=64, hop=32, iterations=30)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return toys.sounds(tmp_path_factory.mktemp("tones") / "data")


def linear_task(front, train, latent=6):
    """Principal components of spectrograms; the level, where there is one, is a number of the code like any other."""
    x = np.asarray(front.analyse(train))
    flat = x.reshape(len(x), -1)
    if front.level:
        flat = np.concatenate([flat, 30 * np.asarray(front.level(train))[:, None]], 1)  # weighty enough to be kept
    fitted = pca.fit(flat, latent)
    mean, basis = jnp.float32(fitted.mean), jnp.float32(fitted.components)

    def encode(params, variables, batch):
        flat = front.analyse(batch).reshape(len(batch["audio"]), -1)
        if front.level:
            flat = jnp.concatenate([flat, 30 * front.level(batch)[:, None]], 1)
        code = (flat - mean) @ basis.T
        return {"mean": code, "logvar": jnp.full_like(code, -4.0)}

    def decode(params, variables, code, condition=None):
        flat = mean + code @ basis
        picture = flat[:, :-1] if front.level else flat
        return {"image": picture.reshape(-1, *front.shape)} | ({"level": flat[:, -1] / 30} if front.level else {})

    def sample(params, variables, key, request):
        made = decode(params, variables, jax.random.normal(key, (len(request["temperature"]), latent)))
        return {"image/mean": made["image"], "audio/mean": front.sound(jnp.clip(made["image"], 0, 1), made.get("level"), key)}

    return Task(init=None, moves={}, metrics=lambda p, v, b, k: {"loss": jnp.ones(len(b["audio"]))}, summary=None, schedule=None, encode=encode,
                decode=decode, sample=sample, front=front)


def heard(data):
    wave, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    return wave, rate


def test_wavs_are_what_other_readers_read():
    wave = np.random.default_rng(0).uniform(-0.4, 0.4, 1001)
    found, rate = heard(sounds.wav(wave, 8000))
    assert rate == 8000 and soundfile.info(io.BytesIO(sounds.wav(wave, 8000))).subtype == "PCM_16"
    np.testing.assert_array_equal(found, np.rint(wave * 32768))
    stored = np.arange(-32768, 32768, 7, dtype=np.int16)
    np.testing.assert_array_equal(heard(sounds.wav(stored / 32768.0, 8000))[0], stored)  # a recording comes back bit for bit
    np.testing.assert_array_equal(heard(sounds.wav([np.nan, 7, -7, np.inf], 8000))[0], [0, 32767, -32768, 0])
    factor = sounds.gain(wave, 3 * wave)
    assert np.abs(heard(sounds.wav(3 * wave, 8000, factor))[0]).max() == pytest.approx(0.9 * 32768, abs=1)
    assert sounds.gain(np.zeros(3)) == 1 and sounds.gain(np.full(3, 1e-6), np.zeros(2)) == 100  # silence is not brought up to full scale
    assert sounds.gain([-0.009]) == pytest.approx(100) and sounds.gain([np.nan, 0.018]) == pytest.approx(50)


def test_low_frequencies_are_at_the_bottom_in_one_colour_scale(spec):
    front = fronts.get(spec, fronts.Sound(**SETTINGS))
    x = np.asarray(front.analyse(toys.tones(2)))
    shown = sounds.show(x)
    assert shown.shape == (2, *front.shape[:2], 3) and shown.dtype == np.uint8
    brightness = shown.astype(int).sum(-1).mean(2)
    wanted = np.array([400, 1200]) / (RATE / SETTINGS["n_fft"])
    np.testing.assert_allclose(front.shape[0] - 1 - brightness.argmax(1), wanted, atol=1)
    ramp = sounds.show(np.linspace(0, 1, 256).reshape(1, 1, 256, 1))[0, 0].astype(float)
    assert (np.diff(ramp @ [0.2126, 0.7152, 0.0722]) > -1).all() and len(np.unique(ramp, axis=0)) > 250
    assert len(np.unique(sounds.show(x[:, :, :1] * 0 + 0.5).reshape(-1, 3), axis=0)) == 1


def test_cells_stand_side_by_side_over_their_caption():
    sets = [np.full((2, 40, 20, 3), v, np.uint8) for v in (10, 200)]
    cells = sounds.side_by_side(sets, ["1.0 dB", "12.5 dB"], 2)
    w = images.resize(sets[0], 4).shape[2]
    h = 2 * w
    assert cells.shape[0] == 2 and cells.shape[2] == 2 * w + 2 and (cells[:, :h, :w] == 10).all() and (cells[:, :h, w + 2:] == 200).all()
    assert (cells[0, h:] != cells[1, h:]).any() and cells[:, h:].std() > 1


def test_losses_in_decibels_are_those_of_the_spectra():
    rng = np.random.default_rng(1)
    magnitude, other = np.exp(rng.normal(0, 1, (2, 3, 9, 7)))
    db, other_db = 20 * np.log10(magnitude), 20 * np.log10(other)
    want = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(magnitude, other)]
    np.testing.assert_allclose(sounds.convergence(db, other_db), want)
    floor = db.min((1, 2), keepdims=True)
    np.testing.assert_allclose(sounds.squared_db(db, db - 500.0), ((db - floor) ** 2).mean((1, 2)))  # nothing is deeper than the floor
    np.testing.assert_allclose(sounds.decibels(np.full((1, 2, 2, 1), 0.25), np.array([0.5]), 80.0), -60 - 40)
    np.testing.assert_allclose(sounds.decibels(np.ones((1, 2, 2, 1)), None, 80.0), 0)


@pytest.mark.parametrize("frames, step, n", [(9, 4, 5), (8, 4, 1), (10, 3, 4), (5, 5, 3)])
def test_stitching_undoes_cutting(frames, step, n):
    whole = np.random.default_rng(2).random(((n - 1) * step + frames, 6)).astype(np.float32)
    pieces = np.stack([whole[i * step:i * step + frames] for i in range(n)])
    np.testing.assert_allclose(sounds.stitch(pieces, step), whole, rtol=1e-5)
    np.testing.assert_allclose(sounds.stitch(jnp.asarray(pieces), step, jnp), whole, rtol=1e-5)


def test_pieces_cover_a_sound_and_no_more():
    for length in (1, 99, 100, 101, 149, 150, 151, 1234):
        begin = sounds.starts(length, 100, 50)
        assert begin[-1] + 100 >= length and (len(begin) == 1 or begin[-2] + 100 < length)


def test_crossfades_keep_the_power_of_independent_noise():
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal(2000) for _ in range(100)]
    whole = sounds.crossfade(parts, 500, 200)
    assert len(whole) == 99 * 1500 + 2000
    np.testing.assert_array_equal(whole[:1500], parts[0][:1500].astype(np.float32))
    for i in range(1, 99):  # between the passages each stretch is as it was, but for its sign
        np.testing.assert_allclose(np.abs(whole[i * 1500 + 500:i * 1500 + 1500]), np.abs(parts[i][500:1500]), rtol=1e-6)
    overlaps = np.stack([whole[i * 1500:i * 1500 + 500] for i in range(1, 100)])
    assert (overlaps**2).mean() == pytest.approx(1, abs=0.06)  # the passage looks for quiet places, which costs a little
    np.testing.assert_array_equal(sounds.crossfade(parts[:1], 500, 200), parts[0].astype(np.float32))


def test_crossfades_of_stretches_that_agree_change_nothing():
    whole = np.random.default_rng(4).standard_normal(4 * 300 + 100)
    parts = [whole[i * 300:i * 300 + 400] * (-1) ** i for i in range(4)]
    np.testing.assert_allclose(sounds.crossfade(parts, 100, 40), whole[:4 * 300 + 100], atol=1e-5)
    np.testing.assert_array_equal(sounds.crossfade([np.zeros(8)] * 3, 4, 9), np.zeros(16))


@pytest.fixture
def light(monkeypatch):
    monkeypatch.setattr(figures, "THEMES", {"": figures.LIGHT})


@pytest.mark.parametrize("normalise", ["fixed", "peak"])
def test_report_of_sounds(spec, light, tmp_path, normalise):
    front = fronts.get(spec, fronts.Sound(**SETTINGS, normalise=normalise))
    splits = {"train": toys.tones(64), "test": toys.tones(24, seed=1)}
    for role, batch in splits.items():  # each recording of one class, in several pieces
        batch["group"] = [f"{role} {label} {i // 12}" for i, label in enumerate(batch["label"])]
    task = linear_task(front, splits["train"])
    names = {"label": ("low", "high"), "speaker": ("ann", "bob")}
    built = report.build(task, {}, {}, splits, [], {"name": "tones", "command": "report"}, jax.random.key(0), names)
    report.write(tmp_path, built)
    page = (tmp_path / "report" / "index.html").read_text()
    files = {p.name: p for p in (tmp_path / "report").glob("*.wav")}
    assert set(re.findall(r'<audio [^>]*src="([^"]+)"', page)) == set(files) and len(files) == 2 * 3 + 10
    assert "<script" not in page and "pictures" not in page and {"scatter-speaker.png", "tsne.png", "tsne-speaker.png"} <= set(built.files)
    for name, path in files.items():
        wave, rate = soundfile.read(path, dtype="float64")
        assert rate == RATE and len(wave) == SAMPLES and np.abs(wave).max() <= 0.9 + 1e-4, name
    numbers = json.loads((tmp_path / "report" / "numbers.json").read_text())
    x, made = np.asarray(front.analyse(splits["test"])), np.asarray(task.decode({}, {}, task.encode({}, {}, splits["test"])["mean"])["image"])
    squared = ((x - made) ** 2).mean((1, 2, 3))
    assert numbers["reconstructions"]["error"][0] == pytest.approx(80 * np.sqrt(squared.mean()), rel=1e-3)
    assert numbers["reconstructions"]["error, high"][0] == pytest.approx(80 * np.sqrt(squared[1::2].mean()), rel=1e-3)
    assert numbers["table"]["error in dB"]["held-out (test)"][0] == pytest.approx(80 * np.sqrt(squared.mean()), rel=1e-3)
    rows = built.files["errors.csv"].decode().splitlines()
    assert rows[0] == "row,label,speaker,squared_error,rmse_db" and len(rows) == 25 and rows[4].startswith("3,1,1,")
    assert float(rows[4].split(",")[-1]) == pytest.approx(80 * np.sqrt(squared[3]), rel=1e-3)
    # the loss of each step by the waves themselves: files carry the gain, originals are bit for bit otherwise
    loss, gain = numbers["sounds"], numbers["sounds"]["gain"]
    assert loss["vocoder alone"][0] < loss["model and vocoder"][0] and 0 < loss["spectral convergence"][0] < 0.3
    original = soundfile.read(files["sound-1-original.wav"])[0] / gain
    distance = np.abs(splits["test"]["audio"][:, :, 0] / 32768.0 - original).max(1)
    assert distance.min() < 1 / 32768 / gain
    alone = soundfile.read(files["sound-1-vocoder.wav"])[0] / gain  # Griffin-Lim finds the level again, quiet sounds included
    assert np.sqrt((alone**2).mean()) == pytest.approx(np.sqrt((original**2).mean()), rel=0.1)
    code = np.asarray(task.encode({}, {}, splits["test"])["mean"])
    apart = {name: metrics.silhouette_score(code, splits["test"][name]) for name in names}
    assert numbers["scatter"]["linear probe, label"] == numbers["scatter"]["linear probe by group, label"] == 1.0
    assert apart["label"] != pytest.approx(apart["speaker"], abs=0.1)
    assert {name: numbers["scatter"][f"silhouette, {name}"] for name in names} == pytest.approx(apart, abs=1e-3)
    for name in ("reconstructions.png", "sounds.png", "samples-mean.png", "waves.png"):
        assert np.asarray(Image.open(io.BytesIO(built.files[name])).convert("RGB")).std() > 5, name


def test_report_of_sounds_without_labels(spec, light):
    front = fronts.get(spec, fronts.Sound(**SETTINGS))
    splits = {"train": {"audio": toys.tones(12)["audio"]}}
    task = linear_task(front, splits["train"], 2)._replace(sample=None)
    built = report.build(task, {}, {}, splits, [], {"name": "tones", "command": "report"}, jax.random.key(0))
    section = {s.name: s for s in built.sections}["sounds"]
    assert [group.title for group in section.sounds] == ["example 1", "example 4", "example 7", "example 9", "example 12"]
    assert "tsne.png" not in built.files and len([f for f in built.files if f.endswith(".wav")]) == 15
