"""What one does with a trained RAVE: sounds of any length in pieces, latents as files, reconstructions, new sounds, analysis, baselines, the page."""

import contextlib
import dataclasses
import io
import json
import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
import scipy.stats
import soundfile
from PIL import Image

from vae_jax import analysis, assess, assess_waves, checkpoint, data, fronts, recordings, records, report, report_waves, session, tasks
from vae_jax import mesh as meshes
from vae_jax.config import Config, Data, Eval, Run, UserError
from vae_jax.latents import fidelity
from vae_jax.losses import spectral
from vae_jax.tasks import rave
from vae_jax.verbs import analyse, decode, reconstruct_waves, sample_waves, trained

RATE, HOP, CROP = 8000, 16, 2048
LENGTHS = {"train": (9000, 2048, 700, 5000), "test": (4096, 3000)}


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def write_sounds(folder, channels):
    """Records of any length: tones that swell, of random pitch, under noise; the channels differ."""
    rng = np.random.default_rng(channels)
    fields = {"audio": records.Field((None, channels), "int16"), "valid": records.Field((), "int32"), "source": records.Field((), "str")}
    with records.Writer(folder, "tones") as writer:
        for split, lengths in LENGTHS.items():
            for i, n in enumerate(lengths):
                time = np.arange(n) / RATE
                wave = np.sin(2 * np.pi * rng.uniform(200, 900) * time) * (0.1 + 0.3 * np.sin(9 * time) ** 2) + 0.01 * rng.standard_normal(n)
                audio = np.stack([wave, 0.5 * np.roll(wave, 40)][:channels], 1)
                writer.add(split, records.encode(fields, {"audio": np.int16(32767 * audio), "valid": n, "source": f"{split}-{i}.wav"}))
        return writer.finish(fields, {}, {"rate": RATE, "channels": channels, "peak": 0.4, "reference_db": -8.0})


def make(folder, channels, **settings):
    """A run folder with a small RAVE that nobody trained, but whose layers let everything through."""
    spec = write_sounds(folder / "data", channels)
    m = rave.Model(**{**dict(capacity=4, latent=6, ratios=(2, 2), bands=4, noise_ratios=(2, 2), noise_hidden=3, amplitudes=3, windows=(256, 64),
                             critic_scales=1, critic_capacity=2, high_hz=1000.0), **settings})
    config = Config(name="tones", task="rave", model=m, data=Data(dir=str(folder / "data"), batch=4, crop=CROP), eval=Eval(batch=4),
                    run=Run(steps=8, devices=1, compile_cache=str(folder / "cache")))
    task = rave.make(config, data.cropped(spec, CROP))
    shapes, rng = jax.eval_shape(task.init, jax.random.key(0), {"audio": jnp.zeros((1, CROP, channels))}), np.random.default_rng(0)

    def drawn(tree):
        kernel = lambda shape: 1.3 * rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape) if len(a.shape) < 2 else kernel(a.shape), jnp.float32), tree)

    workdir = session.folder(str(folder / "run"))
    workdir.mkdir()
    session.store(workdir, config, spec)
    saves = checkpoint.Checkpoints(workdir / "checkpoints")
    saves.save(7, {"params": drawn(shapes[0]), "variables": {"encoder": drawn(shapes[1]["encoder"]), "decoder": {"noise": jnp.float32(0.3)}}}, {})
    saves.finish()
    return session.open_run(str(workdir))


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    return make(tmp_path_factory.mktemp("mono"), 1)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    return make(tmp_path_factory.mktemp("stereo"), 2, causal=True)


def sound(samples, channels=1, seed=0):
    return np.float32(0.2 * np.random.default_rng(seed).standard_normal((samples, channels)))


@pytest.mark.parametrize("which", ["mono", "stereo"])
def test_pieces_of_a_long_sound_are_one_pass_noise_and_all(which, request, monkeypatch):
    run = request.getfixturevalue(which)
    channels, late = run.task.front.shape[1], run.task.front.delay
    monkeypatch.setattr(recordings, "PROBE", 96)
    monkeypatch.setattr(recordings, "SECONDS", 0)
    wave = sound(500 * HOP + 5, channels)
    through, seen = recordings.through(run), []
    looks = recordings._looks
    monkeypatch.setattr(recordings, "_looks", lambda *given: seen.append(looks(*given)) or seen[-1])
    latents = through.encode(wave)
    made = through.decode(latents, len(wave))
    assert len(seen) == 2 and latents.shape == (through.frames(len(wave)), 6) and made.shape == wave.shape
    padded = np.pad(wave, ((0, len(latents) * HOP - len(wave)), (0, 0)))
    whole = jax.jit(run.task.encode)(run.params, run.variables, {"audio": padded[None]})["mean"]
    np.testing.assert_allclose(latents, whole[0], atol=1e-5 * np.abs(whole).max())
    audio = np.asarray(jax.jit(run.task.decode)(run.params, run.variables, whole)["audio"])[0]
    assert (late > 0) == (which == "stereo") and np.std(made) > 1e-3
    np.testing.assert_allclose(made, audio[late:late + len(wave)], atol=1e-5 * np.abs(audio).max())  # in time with the original
    monkeypatch.setattr(recordings, "_looks", lambda *given: (1, 0))
    assert np.abs(through.encode(wave) - whole[0]).max() > 1e-3 * np.abs(whole).max()  # pieces that are not long enough do not do


def test_how_far_a_model_looks_is_what_its_frames_depend_on():
    """Three frames back and one ahead."""
    fn = lambda x, first, key: sum(np.pad(x, ((3, 1), (0, 0)))[i:i + len(x)] for i in range(5))
    assert recordings._looks(fn, 2, None) == (3, 1)
    with pytest.raises(UserError, match="further than 256 frames"):
        recordings._looks(lambda x, first, key: np.cumsum(x, 0), 2, None)


def test_a_file_comes_back_in_time(stereo, tmp_path, capsys):
    """Another rate and one channel instead of two; what is written is never what was read."""
    path, time = tmp_path / "take.flac", np.arange(11025) / 11025
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * time), 11025)
    folder = stereo.workdir / "reconstructions"
    assert reconstruct_waves.main(stereo, "", "", 64, str(path)) == 0
    said = capsys.readouterr().out
    assert "the model is stereo and the file mono" in said and re.search(r"1\.00 s, spectral distance .* held-out \(test, 4 examples\)", said)
    factor = float(said.split("gain of the files ")[1].split()[0])
    original, rate = soundfile.read(folder / "wav-take-original.wav")
    made, _ = soundfile.read(folder / "wav-take-model.wav")
    assert rate == RATE and original.shape == made.shape == (8000, 2)
    heard = 0.3 * np.sin(2 * np.pi * 300 * np.arange(8000) / RATE)
    np.testing.assert_allclose(original[500:-500, 1] / factor, heard[500:-500], atol=3e-3)
    padded = np.float32(np.pad(original / factor, ((0, stereo.task.front.delay + -(8000 + stereo.task.front.delay) % HOP), (0, 0))))
    whole = jax.jit(lambda p, v, x: tasks.rebuild(stereo.task, p, v, {"audio": x})[1]["audio"])(stereo.params, stereo.variables, padded[None])[0]
    aligned = np.asarray(whole)[stereo.task.front.delay:][:8000]
    assert np.corrcoef(aligned.ravel(), made.ravel())[0, 1] > 0.999  # 16 bits have been written and read
    assert np.asarray(Image.open(folder / "wav-take.png")).std() > 5
    pathlib.Path(folder / "wav-link-model.wav").symlink_to(path)
    (tmp_path / "link.flac").symlink_to(path)
    with pytest.raises(UserError, match="would be overwritten"):
        reconstruct_waves.main(stereo, "", "", 64, str(tmp_path / "link.flac"))


def test_two_channels_into_one_are_their_mean(mono, tmp_path, capsys):
    soundfile.write(tmp_path / "two.wav", sound(4000, 2), RATE, "FLOAT")
    np.testing.assert_allclose(recordings.read(mono, str(tmp_path / "two.wav"), "wav")[:, 0], sound(4000, 2).mean(1), atol=1e-7)
    assert "the model is mono and the file stereo: the model hears the mean" in capsys.readouterr().out


def test_reconstructed_crops_and_their_errors(stereo, mono, capsys):
    assert reconstruct_waves.main(stereo, "", "", 3, "") == 0
    said, folder = capsys.readouterr().out, stereo.workdir / "reconstructions" / "tones-test"
    found, source = np.load(f"{folder}.npz"), session.sources(stereo, ("test",))["test"]
    rows = data.spaced(len(source), 3)
    np.testing.assert_array_equal(found["row"], rows)
    assert sorted(p.name for p in folder.glob("*")) == sorted(f"{i:03d}-{kind}.wav" for i in range(3) for kind in ("original", "model"))
    factor, late = float(said.split("gain of the files ")[1].split()[0]), stereo.task.front.delay
    audio = source.read(rows)["audio"] / 32768
    for i in range(3):
        original, model = (soundfile.read(folder / f"{i:03d}-{kind}.wav")[0] / factor for kind in ("original", "model"))
        np.testing.assert_allclose(original, audio[i, :CROP - late], atol=5e-3)
        pair = (np.float32(x.T) for x in (original, model))
        distance = np.mean(spectral.distance(*pair, windows=(256, 64), each=True))
        assert distance == pytest.approx(float(found["distance"][i]), rel=0.05)  # 16 bits, and digits of the gain
    assert f"3 sounds, spectral distance {found['distance'].mean():.3f} (worst {found['distance'].max():.3f})" in said
    with pytest.raises(UserError, match="takes sounds of 1 channel at 8000 Hz, but .* has 2 at 8000: prepare it with --rate=8000 --channels=1"):
        reconstruct_waves.main(mono, str(stereo.config.data.dir), "", 3, "")


@pytest.fixture(scope="module")
def analysed(mono):
    """What the verb prints."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(trained, "open_run", lambda: mono)
        assert analyse.main(0.0) == 0
    return said.getvalue()


def test_directions_are_those_of_all_frames_that_hold_sound(mono, analysed):
    source = session.sources(mono, ("train",))["train"]
    batch = source.read(np.arange(len(source)))
    mean = np.asarray(jax.jit(mono.task.encode)(mono.params, mono.variables, batch)["mean"], np.float64)
    clips = [clip[:-(-int(valid) // HOP)] for clip, valid in zip(mean, batch["valid"])]
    frames, found = np.concatenate(clips), fidelity.load(mono.workdir / "analysis.npz")
    assert found.step == 7 and found.count == len(frames) < mean.shape[0] * mean.shape[1] and f"{len(frames):,} frames" in analysed
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(frames - frames.mean(0), compute_uv=False), rtol=1e-5)
    turned = [(clip - found.mean) @ found.components.T for clip in clips]
    first, second = np.concatenate([t[:-1] for t in turned]), np.concatenate([t[1:] for t in turned])
    np.testing.assert_allclose(found.correlation, (first * second).mean(0) / np.concatenate(turned).var(0), rtol=1e-4)
    np.testing.assert_allclose(analysis.deviations(found), np.concatenate(turned).std(0), rtol=1e-5)


def test_a_cut_code_that_keeps_all_is_the_code(mono, analysed):
    made = json.loads((mono.workdir / "analysis.json").read_text())
    source = session.sources(mono, ("test",))["test"]
    rows = jax.jit(mono.task.metrics)(mono.params, mono.variables, source.read(np.arange(len(source))), jax.random.key(0))
    last = made["cut"][-1]
    assert last["directions"] == made["rank"] == 6 and made["clips"] == len(source)
    for name in ("distance", "error_db", "high_error_db"):
        assert made["full"][name] == pytest.approx(float(rows[name].mean()), rel=1e-4)
        assert last["mean"][name] == pytest.approx(made["full"][name], rel=1e-4) == last["noise"][name]
    found = fidelity.load(mono.workdir / "analysis.npz")
    for level in made["levels"]:
        assert {kind: fidelity.dims_for(found, level["fidelity"], kind) for kind in fidelity.KINDS}.items() <= level.items()
    rises = [b["mean"]["distance"] > a["mean"]["distance"] * (1 + analysis.ALIKE) for a, b in zip(made["cut"], made["cut"][1:])]
    assert made["falls"]["mean"]["distance"] == (not any(rises))
    assert ("distance rises somewhere" in re.search("at their mean.*", analysed)[0]) == any(rises)
    assert np.asarray(Image.open(mono.workdir / "analysis.png")).std() > 5


def test_latents_as_files(mono, analysed, tmp_path, capsys, monkeypatch):
    """All directions as coordinates, and latents as they are, sound as `reconstruct` does; another model's are refused."""
    path, folder = tmp_path / "few.wav", mono.workdir / "latents"
    soundfile.write(path, sound(4000), RATE, "FLOAT")
    reconstruct_waves.main(mono, "", "", 64, str(path))
    wanted = soundfile.read(mono.workdir / "reconstructions" / "wav-few-model.wav")[0]
    found = launch.run("encode", f"--workdir={mono.workdir}", f"--wav={path}", "--dims=6")
    assert found.returncode == 0 and found.stdout.endswith(f"{folder / 'few-dims6.npz'}\n"), found.stderr
    stored = dict(np.load(folder / "few-dims6.npz"))
    latents, directions = recordings.through(mono).encode(sound(4000)), fidelity.load(mono.workdir / "analysis.npz")
    assert stored["latents"].dtype == np.float32 and [int(stored[k]) for k in ("hop", "rate", "samples", "step")] == [HOP, RATE, 4000, 7]
    np.testing.assert_allclose(stored["latents"], (latents - directions.mean) @ directions.components.T, atol=1e-4 * np.abs(latents).max())

    said = []

    def decoded(given):
        monkeypatch.setattr(trained, "open_run", lambda: mono)
        monkeypatch.setattr(decode, "LATENTS", types.SimpleNamespace(value=str(given)))
        capsys.readouterr()
        assert decode.main(0.0) == 0
        made = folder / f"{given.stem}-model.wav"
        said.append(capsys.readouterr().out)
        assert said[-1].endswith(f"{made}\n")
        return soundfile.read(made)[0]

    assert launch.run("encode", f"--workdir={mono.workdir}", f"--wav={path}", "--dims=6").returncode == 0  # the same once more
    np.savez(folder / "few-dims5.npz", **stored)
    found = launch.run("encode", f"--workdir={mono.workdir}", f"--wav={path}", "--dims=5")
    assert found.returncode == 2 and "few-dims5.npz holds other latents than would be written" in found.stderr and "Traceback" not in found.stderr
    np.testing.assert_array_equal(np.load(folder / "few-dims5.npz")["latents"], stored["latents"])
    again = decoded(pathlib.Path(folder / "few-dims6.npz"))
    assert np.corrcoef(again, wanted)[0, 1] > 0.9999 and np.abs(again - wanted).mean() < 1e-3
    stored = {k: v for k, v in stored.items() if k != "analysis"}
    np.savez(tmp_path / "plain.npz", **{**stored, "latents": latents})
    np.testing.assert_array_equal(decoded(tmp_path / "plain.npz"), wanted)
    np.savez(tmp_path / "longer.npz", **{**stored, "latents": np.concatenate([latents, latents])})
    assert len(decoded(tmp_path / "longer.npz")) == 2 * len(latents) * HOP
    np.savez(tmp_path / "other.npz", **{**stored, "latents": latents[:, :5]})
    assert "another encoder" not in said[-1]
    for there, step in ((11, 7), (11, 5), (int(stored["encoder"]), 5)):
        np.savez(tmp_path / "strange.npz", **{**stored, "latents": latents, "encoder": there, "step": step})
        np.testing.assert_array_equal(decoded(tmp_path / "strange.npz"), wanted)
        assert (f"are of another encoder, of another run or another step of stage 1 (step {step} there, 7 here)" in said[-1]) == (there == 11)
        assert ("encoded at step 5, decoded at step 7" in said[-1]) == (there != 11)
    with pytest.raises(UserError, match=r"other.npz is of another model: its frames have 5 numbers and 16 samples at 8000 Hz, those of .* 6 and 16"):
        decoded(tmp_path / "other.npz")
    with pytest.raises(UserError, match="is damaged or not a file that encode wrote"):
        decoded(pathlib.Path(mono.workdir / "analysis.npz"))
    np.savez(tmp_path / "turned.npz", **{**stored, "latents": latents, "analysis": 1})
    with pytest.raises(UserError, match="holds coordinates of another analysis than"):
        decoded(tmp_path / "turned.npz")


def test_control_finds_what_a_direction_does():
    """A planted decoder: one latent is pitch, one loudness, and the strongest direction is the second."""
    def decode(params, variables, z, condition):
        t = jnp.arange(4000) / RATE
        hz, level = 200 * 2 ** z[:, :, 0].mean(1), 0.1 * jnp.exp(z[:, :, 1].mean(1))
        return {"audio": (level[:, None] * jnp.sin(2 * jnp.pi * hz[:, None] * t))[..., None]}

    task = types.SimpleNamespace(front=fronts.Front("wave", (4000, 1), fronts.waves, rate=RATE), decode=decode,
                                 encode=lambda params, variables, batch: {"mean": 0.1 * jnp.tile(batch["audio"][:, :3, 0], (1, 2)).reshape(-1, 2, 3)})
    run = types.SimpleNamespace(task=task, params={}, variables={}, mesh=meshes.make(1))
    source = type("Source", (), {"__len__": lambda self: 5, "read": lambda self, rows: {"audio": sound(5 * 4000).reshape(5, 4000, 1)[rows]}})()
    found = fidelity.Analysis(np.zeros(3), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), np.array([5.0, 4.0, 0.0]), 100)
    loud, high = analysis.control(run, source, found)
    assert loud["loudness"]["correlation"] == pytest.approx(1) == high["pitch"]["correlation"]
    assert loud["loudness"]["change"] == pytest.approx(20 * math.log10(math.e) * 4 * 0.5, abs=0.1)
    assert high["pitch"]["change"] == pytest.approx(12 * 4 * 0.4, abs=0.2) and abs(loud["pitch"]["change"]) < 0.1


def test_a_walk_has_the_training_deviations_and_correlations():
    basis = scipy.stats.ortho_group.rvs(4, random_state=0)
    found = fidelity.Analysis(np.arange(4.0), basis, np.array([30.0, 10.0, 5.0, 1.0]), 100, 7, np.array([0.9, -0.5, 0.3, 0.1]))
    turned = (analysis.walk(found, 2, 40_000, 0.5, 3) - found.mean) @ basis.T
    np.testing.assert_allclose(turned.std(0), [1.5, 0.5, 0.5, 0.5], rtol=0.05)
    lagged = (turned[1:] * turned[:-1]).mean(0) / turned.var(0)
    np.testing.assert_allclose(lagged, [0.9, -0.5, 0, 0], atol=0.03)


def test_new_sounds_say_how_they_were_drawn(mono, stereo, analysed, capsys, monkeypatch):
    sample_waves.main(mono, 2, 0.3, None, 1.0, 0)
    said = capsys.readouterr().out
    assert "as in training (fidelity 0.95)" in said and "2 wavs of 0.3 s" in said
    sheet = said.split()[-1]
    latents, _ = decode._read(sheet.replace(".png", "/001.npz"))
    assert latents.shape == (150, 6) and soundfile.info(sheet.replace(".png", "/001.wav")).frames == 2400
    for _ in range(2):  # what it wrote itself it writes again
        sample_waves.main(stereo, 1, None, None, 1.0, 0)
    said = capsys.readouterr().out
    assert "every frame by itself from the prior" in said
    wave, rate = soundfile.read(said.split()[-1].replace(".png", "/000.wav"))
    assert rate == RATE and wave.shape == (CROP, 2) and np.abs(wave).max() == pytest.approx(0.9, abs=1e-3)
    given = said.split()[-1].replace(".png", "/000.npz")
    drawn = np.load(given)["latents"]
    np.testing.assert_array_equal(drawn, np.float32(np.random.default_rng((0, 0)).standard_normal(drawn.shape)))
    monkeypatch.setattr(trained, "open_run", lambda: stereo)
    monkeypatch.setattr(decode, "LATENTS", types.SimpleNamespace(value=given))
    assert decode.main(0.0) == 0
    again, _ = soundfile.read(stereo.workdir / "latents" / "000-model.wav")
    assert again.shape == wave.shape and np.corrcoef(again.ravel(), wave.ravel())[0, 1] > 0.5  # the model's own noise is drawn anew
    whole = dict(np.load(given))
    np.savez(given, **{**whole, "latents": drawn + 1})
    with pytest.raises(UserError, match="000.npz holds other latents than would be written, changed or of another sound or checkpoint: move it away"):
        sample_waves.main(stereo, 1, None, None, 1.0, 0)
    np.testing.assert_array_equal(np.load(given)["latents"], drawn + 1)


@pytest.mark.parametrize("flag", ["seconds", "temperature"])
def test_a_flag_that_is_not_a_number_is_one_sentence(mono, flag):
    found = launch.run("sample", f"--workdir={mono.workdir}", f"--{flag}=nan")
    assert found.returncode == 2 and found.stderr.endswith(f"error: --{flag}=nan is not a finite number: give one that is.\n"), found.stderr


def test_a_measure_of_a_task_without_measures_is_one_sentence(mono):
    with pytest.raises(UserError, match="^this run of the task 'rave' has no measures, so 'nll' cannot be measured: leave --measure out.$"):
        assess.measure(mono, None, "nll", 5, 4)


@pytest.fixture(scope="module")
def measured(mono):
    return assess.assess(mono)


def test_figures_beside_silence_and_the_mean_spectrum(mono, measured):
    """The mean spectrum by NumPy's own transform; of a short record what is behind its samples counts for nothing."""
    found = measured
    sources = session.sources(mono)
    crops = {role: sources[role].read(np.arange(len(sources[role]))) for role in ("train", "test")}
    train, test = (crops[role]["audio"][..., 0] / 32768 for role in ("train", "test"))
    lengths = crops["train"]["valid"]
    assert sorted(lengths)[:2] == [700, CROP] and crops["test"]["valid"].min() == CROP

    def magnitudes(x, window):
        padded = np.pad(x, ((0, 0), (window // 2, window // 2)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, window, 1)[:, ::window // 4]
        return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1]))

    expected, silence = 0.0, 0.0
    for window in (256, 64):
        heard = [s[:1 + n // (window // 4)] for s, n in zip(magnitudes(train, window), lengths)]
        silence += np.mean([1 + np.log(s / 1e-3 + 1).mean() for s in heard])
        s, z = magnitudes(test, window), np.mean([s.mean(0) for s in heard], 0)
        expected += np.mean(((s - z) ** 2).mean((1, 2)) / (s**2).mean((1, 2)) + np.abs(np.log(s + 1e-3) - np.log(z + 1e-3)).mean((1, 2)))
    assert found["eval/test/mean_spectrum_distance"] == pytest.approx(expected, rel=1e-3)
    assert found["eval/train/silence_distance"] == pytest.approx(silence, rel=1e-3)
    code = jax.jit(mono.task.encode)(mono.params, mono.variables, crops["train"])
    mean, logvar = (np.asarray(code[name], np.float64) for name in ("mean", "logvar"))
    nats = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(-1)
    assert found["eval/train/kl"] == pytest.approx(np.mean([row[:-(-n // HOP)].mean() for row, n in zip(nats, lengths)]), rel=1e-4)
    better = min(expected, found["eval/test/silence_distance"])
    assert found["eval/test/distance_ratio"] == pytest.approx(found["eval/test/loss"] / better, rel=1e-3)
    assert set(assess_waves.ratios(found)) == {"eval/test/distance_ratio"}


def test_the_page(mono, analysed, measured, tmp_path):
    history = [{"step": s, "eval/test/loss": 9.0 - s, "eval/train/loss": 8.0 - s, "eval/test/kl": 3.0} for s in (0, 5)]
    made = report_waves.build(mono, session.sources(mono), history, {"name": "tones", "command": "python -m vae_jax report", "seed": 0})
    page = report.write(tmp_path, made)
    text, numbers = open(page).read(), json.loads((tmp_path / "report" / "numbers.json").read_text())
    assert [s.name for s in made.sections] == ["sounds", "latents", "directions", "control", "samples", "curves"]
    for name in re.findall(r'src="([^"]+\.(?:wav|png))"', text):
        assert (tmp_path / "report" / name).exists(), name
    assert text.count("<audio") == 2 * 2 + 4 and "test-0.wav" in text and "traceback" not in text.lower()
    assert numbers["table"]["ratio"]["held-out (test)"] == pytest.approx(measured["eval/test/distance_ratio"])
    assert numbers["directions"]["table"]["0.95"]["directions"] == fidelity.dims_for(fidelity.load(mono.workdir / "analysis.npz"), 0.95)
    original, _ = soundfile.read(tmp_path / "report" / "sound-1-original.wav")
    assert len(original) == LENGTHS["test"][0]
    assert numbers["latents"]["KL a frame"] == pytest.approx(numbers["table"]["KL"]["held-out (test)"], rel=1e-3)


def test_an_analysis_of_another_checkpoint_is_not_shown(mono, analysed):
    other = mono._replace(step=8)
    assert report_waves._analysed(other) == (None, None) and report_waves._analysed(mono)[0].step == 7


def test_other_models_are_refused(mono, monkeypatch):
    picture = mono._replace(task=mono.task._replace(front=fronts.Front("image", (2, 2, 1), fronts.pixels)))
    monkeypatch.setattr(trained, "open_run", lambda: picture)
    with pytest.raises(UserError, match="this is for models of the wave, such as RAVE"):
        trained.open_run_of_waves()
    with pytest.raises(UserError, match="there is no .*analysis.npz: write it with `analyse`"):
        analysis.load(mono._replace(workdir=mono.workdir / "none"))


def test_bench_plays_a_model_of_its_size(mono, monkeypatch):
    """In a process of its own: `bench` has flags that other verbs have too."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    m = mono.config.model
    sizes = {"capacity": m.capacity, "latent": m.latent, "ratios": m.ratios, "bands": m.bands, "noise_ratios": m.noise_ratios, "windows": m.windows,
             "noise_hidden": m.noise_hidden, "amplitudes": m.amplitudes, "high_hz": m.high_hz, "causal": True}
    given = ["--config=experiments/rave.py:small", f"--config.data.dir={mono.config.data.dir}", f"--config.data.crop={CROP}",
             f"--config.run.compile_cache={mono.config.run.compile_cache}", *(f"--config.model.{name}={value}" for name, value in sizes.items())]
    made = launch.run("bench", *given, f"--play={4 * HOP}", "--steps=3")
    assert made.returncode == 0, made.stderr
    found, config = json.loads(made.stdout), mono.config
    config = Config(name="played", task="rave", model=dataclasses.replace(m, causal=True), data=config.data)
    params, _ = jax.eval_shape(rave.make(config, mono.spec).init, jax.random.key(0), {"audio": jnp.zeros((1, CROP, 1))})
    assert found["parameters"] == sum(x.size for player in ("encoder", "decoder") for x in jax.tree.leaves(params[player]))
    assert found["latency"] == rave.live(config, mono.spec).latency and found["causal"] and found["rate"] == RATE
    assert found["block"] == 4 * HOP and found["block_lasts_ms"] == 1e3 * 4 * HOP / RATE and 0 < found["block_ms"] <= found["worst_block_ms"]
    times = [found[name] for name in ("encode_times", "decode_times", "stream_times", "worst_stream_times")]
    assert min(times) > 0 and found["worst_stream_times"] <= found["stream_times"]
    for flags, sentence in (((*given, f"--play={HOP + 1}"), "a block of 17 samples is no multiple of the model's hop of 16: give 16."),
                            (("--config=experiments/mnist.py", "--play=64"), "--play times models of the wave")):
        refused = launch.run("bench", *flags)
        assert refused.returncode == 2 and sentence in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
