"""What one does with a VQ-VAE of raw sound and a prior over its codes: training as typed, copies with another voice, what judges hear, new sounds."""

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
import soundfile
import toys
from sklearn.metrics import mutual_info_score

from vae_jax import assess, assess_codes, compression, data, fronts, metrics, records, report, report_spoken, session, train
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.latents import pca, probes
from vae_jax.tasks import classifier, vqvae, wave_code_prior, wave_vqvae
from vae_jax.verbs import reconstruct_codes, sample_codes

MODEL = dict(hidden=8, blocks=0, downs=4, codes=8, dims=4, kmeans=2, cycles=1, layers=2, residual=8, gate=8, skip=16, condition="speaker")
SOUND = fronts.Sound(n_fft=64, hop=32)
CONFIG = f'''
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import wave_vqvae

def get_config():
    return Config(name="toy", task="wave_vqvae", model=wave_vqvae.Model(**{MODEL}), data=Data(dir=DATA, crop=512, batch=8), optim=Optim(lr=1e-2),
                  eval=Eval(every=0, batch=8), run=Run(steps=30, log_every=10, save_every=30, devices=1, compile_cache=CACHE))
'''


pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A VQ-VAE trained from the command line, judges of class and speaker, and a prior, all for a few steps."""
    folder = tmp_path_factory.mktemp("wave")
    toys.sounds(folder / "data", {"train": 32, "test": 12})
    (folder / "toy.py").write_text(CONFIG.replace("DATA", repr(str(folder / "data"))).replace("CACHE", repr(str(folder / "cache"))))
    found = launch.run("train", f"--config={folder / 'toy.py'}", f"--workdir={folder / 'vq'}")
    assert found.returncode == 0 and "a code stands for 4 ms" in found.stderr + found.stdout, found.stderr
    lines = [line for line in launch.lines(folder / "vq") if "eval/test/loss" in line]
    assert lines[-1]["eval/test/loss"] < np.log(256) and lines[-1]["eval/test/uniform_bits_per_second"] == 750.0
    players = ",".join(f"{player}={folder / 'vq'}" for player in ("encoder", "quantizer", "decoder"))
    prior = wave_code_prior.Model(autoencoder=wave_vqvae.Model(**MODEL), condition=("label",), cycles=1, layers=2, residual=8, gate=8, skip=8)
    for name, task, model, more in (("prior", "wave_code_prior", prior, {"start_from": players}),
                                    ("label", "classifier", classifier.Model(channels=(8,), hidden=8, sound=SOUND), {}),
                                    ("speaker", "classifier", classifier.Model(channels=(8,), hidden=8, sound=SOUND, label="speaker"), {})):
        config = Config(name=name, task=task, model=model, data=Data(dir=str(folder / "data"), batch=8), optim=Optim(lr=1e-2),
                        eval=Eval(every=0, batch=12, roles=("test",)),
                        run=Run(steps=60, log_every=30, save_every=60, devices=1, compile_cache=str(folder / "cache")), **more)
        train.train(config, str(folder / name))
    return folder


def test_figures_and_the_judges_of_copies(setup):
    run = session.open_run(str(setup / "vq"))
    first = assess.assess(run, judge=str(setup / "label"))
    assert {"judge/label_kept", "judge/label_in_copies", "judge/label_accuracy", "eval/test/bits_per_sample"} <= first.keys()
    found = assess_codes.judged(run, str(setup / "speaker"), session.sources(run))

    source = data.Source(str(setup / "data"), "test")
    batch = source.read(np.arange(12))
    own, swapped = (jax.tree.map(np.asarray, jax.jit(lambda p, v: assess_codes.copy(run, p, v, batch, to))(run.params, run.variables))
                    for to in (None, 1 - batch["speaker"]))
    x, y = own[0][:, :1000, 0], own[1][:, :1000, 0]
    assert first["judge/correlation"] == pytest.approx(np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(x, y)]), rel=1e-4)
    judge = session.open_run(str(setup / "speaker"))
    named = lambda audio: np.asarray(judge.task.encode(judge.params, judge.variables, {"audio": audio[:, :1000]})["logits"]).argmax(-1)
    assert found["judge/speaker_in_copies"] == pytest.approx(np.mean(named(own[1]) == batch["speaker"]))
    assert found["judge/speaker_moved"] == pytest.approx(np.mean(named(swapped[1]) != batch["speaker"]))
    assert found["judge/speaker_in_originals"] == pytest.approx(np.mean(named(own[0]) == batch["speaker"]))

    assert found["judge/speaker_moved_error"] == pytest.approx(np.std(named(swapped[1]) != batch["speaker"], ddof=1) / np.sqrt(12))

    code = np.asarray(jax.jit(run.task.encode)(run.params, run.variables, batch)["indices"])[..., 0]
    told = lambda label: mutual_info_score(np.repeat(label, 63), code.reshape(-1)) / np.log(2)
    chance = np.mean([told(np.random.default_rng(i).permutation(batch["label"])) for i in range(20)])
    assert first["eval/test/information_label_by_chance"] == pytest.approx(chance, rel=1e-5)
    assert first["eval/test/information_label"] == pytest.approx(told(batch["label"]) - chance, rel=1e-4, abs=1e-7)

    codebook = np.asarray(vqvae.codebook(run.config.model, run.params, run.variables)["codebook"]).reshape(8, 4)

    def views(role):
        rows = data.Source(str(setup / "data"), role)
        batch = rows.read(np.arange(len(rows)))
        vectors = codebook[np.asarray(jax.jit(run.task.encode)(run.params, run.variables, batch)["indices"])[..., 0]]
        sixths = [[part.mean(0) for part in (v[n * i // 6:n * (i + 1) // 6] for i in range(6))] for v, n in zip(vectors, -(-batch["valid"] // 16))]
        return np.asarray(sixths), batch

    (train_x, train_batch), (x, batch) = views("train"), views("test")
    directions = pca.fit(train_x, 64)
    for name in ("label", "speaker"):
        assert first[f"eval/test/probe_{name}_majority"] == np.bincount(batch[name]).max() / 12
        by_hand = probes.linear_probe(pca.project(directions, train_x), train_batch[name], pca.project(directions, x), batch[name])[0]
        assert first[f"eval/test/probe_{name}_codes"] == pytest.approx(by_hand, abs=1e-6)


def test_copies_as_files(setup, capsys, tmp_path):
    run = session.open_run(str(setup / "vq"))
    folder = setup / "vq" / "reconstructions"
    said = launch.run("reconstruct", f"--workdir={setup / 'vq'}", "--count=3", "--condition=bob")
    assert said.returncode == 0 and "3 sounds as bob" in said.stdout, said.stderr
    assert reconstruct_codes.main(run, "", "", 3, "", "") == 0 and "correlation of the waves" in capsys.readouterr().out
    names = [f"tones-test{name}.wav" for name in ("-speaker1/000-model", "/000-model", "/000-original")]
    as_bob, as_said, original = (soundfile.read(folder / name)[0] for name in names)
    assert len(as_bob) == len(as_said) == len(original) == 1008
    assert np.abs(as_bob - as_said).max() > 1e-3 and np.abs(as_said - original).max() > 1e-3
    assert len(np.load(folder / "tones-test.npz")["correlation"]) == 3 and (folder / "tones-test.png").exists()

    soundfile.write(tmp_path / "mine.wav", 0.3 * np.sin(np.arange(9000) / 9), 12_000)  # another rate
    assert reconstruct_codes.main(run, "", "", 8, str(tmp_path / "mine.wav"), "ann") == 0
    made, rate = soundfile.read(folder / "wav-mine-speaker0-model.wav")
    assert (len(made), rate) == (3000, toys.RATE) and np.std(made) > 1e-4 and "0.75 s as ann" in capsys.readouterr().out


def test_new_sounds(setup, capsys, monkeypatch):
    run = session.open_run(str(setup / "prior"))
    assert sample_codes.main(run, 8, {"label": "", "speaker": "bob"}, 1.0, 0) == 0
    stored = np.load(setup / "prior" / "samples" / "count8-speaker1-temperature1-seed0.npz")
    np.testing.assert_array_equal(stored["label"], np.arange(8) % 2)
    np.testing.assert_array_equal(stored["speaker"], np.ones(8))
    files = sorted((setup / "prior" / "samples" / "count8-speaker1-temperature1-seed0").iterdir())
    assert files[1].name == "001-high-bob.wav" and len(files) == 8
    assert [len(soundfile.read(f)[0]) for f in files] == [max(1, n) for n in stored["valid"]]
    request = assess_codes.requests(run, 8)
    assert {tuple(pair) for pair in zip(request["label"].tolist(), request["speaker"].tolist())} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    monkeypatch.setattr(assess_codes, "SAMPLES", 60)
    found, request = assess_codes.judged(run, str(setup / "label"), {}), assess_codes.requests(run, 60)
    judge = session.open_run(str(setup / "label"))
    sample, right, ended = jax.jit(run.task.sample), 0, 0
    for i, rows in enumerate((slice(0, 50), slice(50, 60))):
        key = jax.random.fold_in(jax.random.key(run.config.seed + 3), i)
        drawn = sample(run.params, run.variables, key, {k: v[rows] for k, v in request.items()})
        heard = {"audio": drawn["audio/mean"][:, :1000, None]}
        right += int((np.argmax(judge.task.encode(judge.params, judge.variables, heard)["logits"], -1) == request["label"][rows]).sum())
        ended += int((drawn["valid"] < 1008).sum())
    assert found["judge/label_in_samples"] == pytest.approx(right / 60) and found["judge/samples_end"] == pytest.approx(ended / 60)
    assert found["judge/label_accuracy"] > 0.9
    with pytest.raises(UserError, match="--speaker=eve is not a class"):
        sample_codes.main(run, 8, {"speaker": "eve"}, 1.0, 0)


def test_files_of_codes_of_sounds_of_any_length(setup):
    """Packed and by the prior: they come back, and cost what the formula and the prior say."""
    rng = np.random.default_rng(0)
    valid = rng.integers(0, 1001, 70).astype(np.int32)
    positions = np.maximum(1, -(-valid // 16))
    kept = np.arange(63) < positions[:, None]
    indices = rng.integers(0, 8, (70, 63, 1)).astype(np.int32)
    marks = {name: rng.integers(0, 2, 70).astype(np.int32) for name in ("label", "speaker")}
    start = len(compression.MAGIC) + compression.DIGEST + 4
    for name, told in (("vq", ("speaker",)), ("prior", ("label", "speaker"))):
        run = session.open_run(str(setup / name))
        codes = compression.Codes(indices, {field: marks[field] for field in told}, valid)
        data = compression.write(run, codes)
        found = compression.read(run, data, "x")
        np.testing.assert_array_equal(found.indices[..., 0], np.where(kept, indices[..., 0], 0))
        np.testing.assert_array_equal(found.valid, valid)
        assert found.told.keys() == set(told) and all(np.array_equal(found.told[field], marks[field]) for field in told)
        header = int.from_bytes(data[start - 4:start], "big")
        beside = sum(-(-70 * bits // 8) for bits in [1] * len(told) + [10])  # 0 to 1,008 samples in ten bits
        cost = (len(data) - start - header - beside) * 8
        if name == "vq":
            assert 0 <= cost - 3 * kept.sum() < 8
        else:
            m = run.config.model
            net = wave_code_prior.network(m, 8)
            logits = net.apply(run.params["prior"], jnp.where(kept, indices[..., 0], 8), wave_code_prior.condition(m, {"label": 2}, marks))[..., :8]
            bits = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), indices, -1)[..., 0][kept].sum() / np.log(2)
            assert cost == pytest.approx(bits, rel=0.002, abs=80)


def test_compress_and_decompress_as_typed(setup):
    said = launch.run("compress", f"--workdir={setup / 'prior'}", f"--out={setup / 'tones.codes'}")
    assert said.returncode == 0 and "12 sounds, 3.0 s; 1 code of 3 bits for 16 samples of 16: ratio 85.33 by the formula" in said.stdout, said.stderr
    said = launch.run("decompress", f"--workdir={setup / 'prior'}", f"--codes={setup / 'tones.codes'}", f"--out={setup / 'tones.npz'}")
    assert said.returncode == 0, said.stderr
    found, run = np.load(setup / "tones.npz"), session.open_run(str(setup / "vq"))
    batch = assess_codes.wholes(run, session.sources(run))["test"].read(np.arange(12))
    np.testing.assert_array_equal(found["indices"], jax.jit(run.task.encode)(run.params, run.variables, batch)["indices"])
    np.testing.assert_array_equal(found["speaker"], batch["speaker"])
    wave, rate = soundfile.read(setup / "tones" / "003.wav", dtype="int16")
    assert rate == toys.RATE and len(wave) == found["valid"][3] == 1000
    np.testing.assert_allclose(wave, found["audio"][3, :1000], atol=1)
    again = launch.run("decompress", f"--workdir={setup / 'prior'}", f"--codes={setup / 'tones.codes'}", f"--out={setup / 'tones.npz'}")
    assert again.returncode == 2 and "not overwritten" in again.stderr


def test_refusals(setup, tmp_path):
    run = session.open_run(str(setup / "vq"))
    rebuild = lambda wav="", condition="", origin="": reconstruct_codes.main(run, origin, "", 3, wav, condition)
    soundfile.write(tmp_path / "mine.wav", np.zeros(100), toys.RATE)
    with pytest.raises(UserError, match="--condition=eve is no speaker that the model was told of; these are ann, bob"):
        rebuild(condition="eve")
    with pytest.raises(UserError, match="does not say whose voice it has"):
        rebuild(wav=str(tmp_path / "mine.wav"))
    fields = {k: f for k, f in run.spec.fields.items() if k in ("audio", "valid")}
    for name, rate in (("other", 8000), ("nobody", toys.RATE)):
        with records.Writer(tmp_path / name, name) as writer:
            writer.add("test", records.encode(fields, {"audio": np.ones((512, 1), np.int16), "valid": 512}))
            writer.finish(fields, {}, {"rate": rate})
    with pytest.raises(UserError, match="one channel at 4000 Hz.*--rate=4000"):
        rebuild(origin=str(tmp_path / "other"))
    with pytest.raises(UserError, match="does not have these: give --condition=ann"):
        rebuild(origin=str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="is no judge of sounds"):
        assess_codes.judged(run, str(setup / "vq"), {})
    said = launch.run("encode", f"--workdir={setup / 'vq'}", f"--wav={tmp_path / 'mine.wav'}")
    assert said.returncode == 2 and "this is for models of the wave" in said.stderr, said.stderr


def test_pages(setup, tmp_path):
    for name, sections in (("vq", ["sounds", "codes", "curves"]), ("prior", ["sounds", "samples", "curves"])):
        run = session.open_run(str(setup / name))
        made = report_spoken.build(run, session.sources(run), metrics.read(run.workdir), {"name": name, "command": "report"})
        assert [section.name for section in made.sections] == sections and "750 bits a second" in made.subtitle
        report.write(tmp_path / name, made)
        heard, rate = soundfile.read(tmp_path / name / "report" / "sound-1-another-voice.wav")
        assert rate == toys.RATE and len(heard) == toys.SAMPLES and np.abs(heard).max() > 0
    assert (tmp_path / "prior" / "report" / "sample-20.wav").exists()
