"""The verbs on sounds, as typed: samples, reconstructions of the test split, of other data and of files of any length."""

import re
import types

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
import soundfile
import toys
from PIL import Image

from vae_jax import data, fronts, records
from vae_jax.config import UserError
from vae_jax.media import sounds

RATE, SAMPLES = toys.RATE, toys.SAMPLES


@pytest.mark.parametrize("normalise", ["fixed", "peak"])
def test_a_long_sound_through_a_model_that_changes_nothing(tmp_path, normalise, monkeypatch):
    """What is left is the vocoder's loss, at the joints of pieces and of stretches no more than elsewhere."""
    from vae_jax.verbs import reconstruct

    spec, settings = toys.sounds(tmp_path / "data"), fronts.Sound(n_fft=64, hop=32, iterations=30, normalise=normalise)
    front = fronts.get(spec, settings)
    bins, frames, _ = front.shape

    def encode(params, variables, batch):
        level = front.level(batch)[:, None] if front.level else jnp.ones((len(batch["audio"]), 1))
        return {"mean": jnp.concatenate([front.analyse(batch).reshape(len(batch["audio"]), -1), level], 1)}

    def decode(params, variables, code, condition=None):
        return {"image": code[:, :-1].reshape(-1, bins, frames, 1)} | ({"level": code[:, -1]} if front.level else {})

    config = types.SimpleNamespace(model=types.SimpleNamespace(sound=settings))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    task = types.SimpleNamespace(front=front, condition=None, encode=encode, decode=decode)
    run = types.SimpleNamespace(task=task, config=config, spec=spec, params={}, variables={}, mesh=mesh)
    monkeypatch.setattr(reconstruct, "PIECES", 5)
    time = np.arange(int(4.3 * RATE)) / RATE
    wave = (0.4 * np.sin(2 * np.pi * (300 * time + 150 * time**2)) * (1 + 0.5 * np.sin(9 * time)) * np.where(time < 2, 1, 0.2)).astype(np.float32)
    made, squared, shown = reconstruct.long_sound(run, wave)
    assert made.shape == wave.shape and len(squared) == len(sounds.starts(len(wave), SAMPLES, 16 * 32)) and np.abs(squared).max() < 1e-10
    assert shown[0].shape == shown[1].shape == (3, bins, 32, 1)
    long = fronts.get(records.Spec("long", {"audio": records.Field((len(wave), 1), "int16")}, {}, facts=spec.facts), fronts.Sound(n_fft=64, hop=32))
    db = [sounds.decibels(np.asarray(long.analyse({"audio": w[None, :, None]})), None, 80.0) for w in (wave, made)]
    assert sounds.convergence(*db)[0] < 0.15
    magnitude, other = (10 ** (d[0] / 20) for d in db)
    lost = np.abs(magnitude - other).sum(0) / magnitude.sum(0)
    assert np.median(lost) < 0.02 and lost.max() < 0.3  # a click reaches over all bins of a frame: more than once its own magnitude


CONFIG = '''
from vae_jax import fronts
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae

def get_config():
    return Config(name="tones", model=vae.Model(hidden=(32,), latent=3, likelihood="gaussian", prior="mixture", components=2,
                                                sound=fronts.Sound(n_fft=64, hop=32, iterations=20, normalise="peak")),
        data=Data(dir={data!r}, batch=16), optim=Optim(lr=3e-3), eval=Eval(every=60, batch=24),
        run=Run(steps=60, log_every=20, save_every=60, compile_cache={cache!r}))
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    toys.sounds(folder / "data")
    (folder / "config.py").write_text(CONFIG.format(data=str(folder / "data"), cache=str(folder / "cache")))
    made = launch.run("train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}")
    assert made.returncode == 0, made.stderr
    return folder


def verb(name, *flags):
    found = launch.run(name, *flags)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    return found.stdout


def dominant(wave):
    """Hertz of the strongest frequency; the tones have about 400 (low) and 1200 (high)."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return spectrum.argmax() * RATE / len(wave)


def test_sample_writes_wavs(trained):
    out = verb("sample", f"--workdir={trained / 'run'}", "--count=6", "--label=high", "--temperature=0.3")  # near the class's mean code
    sheet = out.split()[-1]
    arrays = np.load(sheet.replace(".png", ".npz"))
    assert arrays["audio"].shape == (6, SAMPLES) and arrays["mean"].shape == (6, 32, 32, 1)
    waves = [soundfile.read(f"{sheet[:-4]}/{i:03d}.wav") for i in range(6)]
    assert all(rate == RATE and len(wave) == SAMPLES for wave, rate in waves)
    assert max(np.abs(wave).max() for wave, _ in waves) == pytest.approx(0.9, abs=1e-3)
    assert [dominant(wave) for wave, _ in waves] == pytest.approx([1200] * 6, abs=100)


@pytest.fixture(scope="module")
def rebuilt(trained):
    """What the plain verb prints of the whole test split."""
    return verb("reconstruct", f"--workdir={trained / 'run'}", "--count=30")


def test_reconstruct_writes_wavs_and_the_error_it_prints(trained, rebuilt):
    folder = trained / "run" / "reconstructions" / "tones-test"
    arrays = np.load(f"{folder}.npz")
    squared = ((arrays["original"] - arrays["reconstruction"]) ** 2).mean((1, 2, 3))
    assert len(squared) == 24 and f"24 sounds, error {80 * np.sqrt(squared.mean()):.2f} dB" in rebuilt and "held-out" not in rebuilt
    assert len(list(folder.glob("*.wav"))) == 48
    factor = float(rebuilt.split("gain of the files ")[1].split()[0])
    for row in (0, 13):
        original, rate = soundfile.read(folder / f"{row:03d}-original.wav")
        assert rate == RATE and len(original) == len(soundfile.read(folder / f"{row:03d}-model.wav")[0]) == SAMPLES
        np.testing.assert_allclose(original / factor, toys.tones(24, seed=1)["audio"][row, :, 0] / 32768, atol=1e-2 * np.abs(original).max())


def test_reconstruct_of_other_data_says_the_runs_own_error_too(trained, rebuilt):
    """Its own examples are spread over the split, and no file of the call before is left."""
    other = trained / "other"
    toys.sounds(other, {"train": 8, "validation": 0, "test": 40})  # of the same name, but other tones: their seed is the split's number
    out = verb("reconstruct", f"--workdir={trained / 'run'}", f"--data={other}", "--count=5")
    folder = trained / "run" / "reconstructions" / "tones-test"
    assert out.split()[-1] == f"{folder}.png"
    own = re.search(r"24 sounds, error (\d+\.\d\d) dB", rebuilt)[1]
    assert f"held-out (test, 24 examples of 2 speakers: ann, bob) {own} dB" in out
    arrays, rows = np.load(f"{folder}.npz"), data.spaced(40, 5)
    np.testing.assert_array_equal(arrays["row"], rows)
    squared = ((arrays["original"] - arrays["reconstruction"]) ** 2).mean((1, 2, 3))
    assert f"5 sounds, error {80 * np.sqrt(squared.mean()):.2f} dB" in out
    assert sorted(p.name for p in folder.glob("*")) == sorted(f"{i:03d}-{kind}.wav" for i in range(5) for kind in ("original", "model"))
    factor = float(out.split("gain of the files ")[1].split()[0])
    for i, row in enumerate(rows):
        original = soundfile.read(folder / f"{i:03d}-original.wav")[0]
        np.testing.assert_allclose(original / factor, toys.tones(40, seed=2)["audio"][row, :, 0] / 32768, atol=1e-2 * np.abs(original).max())


def test_reconstruct_takes_any_file(trained, rebuilt):
    path = trained / "tones-test.flac"
    time = np.arange(int(1.7 * 11025)) / 11025
    soundfile.write(path, np.stack([0.5 * np.sin(2 * np.pi * 400 * time), 0.3 * np.sin(2 * np.pi * 400 * time)], 1), 11025)
    folder = trained / "run" / "reconstructions"
    before = (folder / "tones-test.png").read_bytes()
    out = verb("reconstruct", f"--workdir={trained / 'run'}", f"--wav={path}")
    assert (folder / "tones-test.png").read_bytes() == before  # the file is named as the data set and its split are
    assert out.rstrip().endswith(str(folder / "wav-tones-test-model.wav")) and "1.70 s in" in out
    own = re.search(r"24 sounds, error (\d+\.\d\d) dB", rebuilt)[1]
    assert re.search(rf"error \d+\.\d\d dB .*held-out \(test, 24 examples of 2 speakers: ann, bob\) {own} dB", out)
    for kind in ("model", "original"):
        wave, rate = soundfile.read(folder / f"wav-tones-test-{kind}.wav")
        assert rate == RATE and len(wave) == round(1.7 * RATE) and np.abs(wave).max() <= 0.9 + 1e-4
        assert dominant(wave) == pytest.approx(400, abs=1 if kind == "original" else 40), kind
    shown = np.asarray(Image.open(folder / "wav-tones-test.png"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("wave, sentence", [(np.full(2 * RATE, 1e-6), "silent: below -80 dB of full scale"),
                                            (np.full(1, 0.5), "shorter than 0.01 s")])
def test_a_file_that_holds_no_sound_is_one_sentence(trained, wave, sentence):
    path = trained / "nothing.wav"
    soundfile.write(path, wave, RATE, "FLOAT")
    found = launch.run("reconstruct", f"--workdir={trained / 'run'}", f"--wav={path}")
    assert found.returncode == 2 and f"--wav={path} cannot be used: {sentence}." in found.stderr and "Traceback" not in found.stderr, found.stderr
    assert not list((trained / "run").glob("reconstructions/wav-nothing*"))


def test_a_conditional_model_refuses_other_classes():
    from vae_jax.verbs import reconstruct

    field = lambda *names: {"image": records.Field((2, 2, 1), "uint8"), "label": records.Field((), "int64", names)}
    run = types.SimpleNamespace(task=types.SimpleNamespace(front=types.SimpleNamespace(kind="image"), condition=len),
                                spec=types.SimpleNamespace(fields=field("left", "right")))
    for names in (("right", "up", "left"), ("right", "left")):
        source = types.SimpleNamespace(split=types.SimpleNamespace(fields=field(*names)), fields=("image", "label"), crop=0)
        with pytest.raises(UserError, match="left, right, but other has right"):
            reconstruct.check(run, "other", source)
