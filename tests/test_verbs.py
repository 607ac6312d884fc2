"""Every verb from the command line, on one small trained run."""

import html
import json
import shutil

import launch
import numpy as np
import pytest
import toys

from vae_jax import records, session, train
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.tasks import classifier


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    config = launch.write_config(folder, toys.pictures(folder / "data"), 60)
    made = launch.run("train", f"--config={config}", f"--workdir={folder / 'run'}")
    assert made.returncode == 0, made.stderr
    return folder, config


def verb(name, *flags, **options):
    found = launch.run(name, *flags, **options)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    return found.stdout


def test_evaluate(setup):
    folder, _ = setup
    verb("evaluate", f"--workdir={folder / 'run'}", "--measure=nll:50", devices=4)  # trained on one
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())
    results = evaluation["results"]
    assert results["eval/test/nll"] < results["eval/test/loss"] and results["eval/test/nll_samples"] == 50
    seen, test = (records.open_split(folder / "data", k).read_all(["image"])["image"] / 255.0 for k in ("train", "test"))
    assert results["eval/test/mean_picture_mse"] == pytest.approx(((test - seen.mean(0)) ** 2).mean(), rel=1e-6)
    assert 0 <= results["eval/test/mutual_information"] <= results["eval/test/mutual_information_limit"]
    logged = next(line for line in launch.lines(folder / "run") if line["step"] == evaluation["checkpoint"] and "eval/test/loss" in line)
    for role in ("train", "validation", "test"):
        assert results[f"eval/{role}/loss"] == pytest.approx(logged[f"eval/{role}/loss"], rel=1e-5)


def test_a_run_takes_its_own_data_wherever_it_lies_and_no_other(setup):
    folder, _ = setup
    run = session.open_run(str(folder / "run"))
    run.config.data.dir = str(shutil.copytree(folder / "data", folder / "moved"))
    assert {role: len(source) for role, source in session.sources(run).items()} == {"train": 96, "validation": 24, "test": 27}
    run.config.data.dir = toys.pictures(folder / "other", seed=1)
    with pytest.raises(UserError, match="other holds other data than .*run was trained on"):
        session.sources(run)


def test_a_judge_looks_at_samples(setup):
    """A classifier that tells the halves apart."""
    folder, _ = setup
    config = Config(name="judge", task="classifier", model=classifier.Model(channels=(8,), hidden=8), data=Data(dir=str(folder / "data"), batch=32),
                    optim=Optim(lr=1e-2), eval=Eval(every=100, batch=9), run=Run(steps=100, save_every=100, devices=1))
    train.train(config, str(folder / "judge"))
    verb("evaluate", f"--workdir={folder / 'run'}", f"--judge={folder / 'judge'}")
    found = json.loads((folder / "run" / "evaluation.json").read_text())["results"]
    assert found["judge/accuracy"] > 0.95 and found["judge/classes"] == 2 and 0.5 < found["judge/confidence"] <= 1
    histogram = [found[f"judge/confidence_{i / 10:.1f}"] for i in range(10)]
    assert sum(histogram) == pytest.approx(1) and histogram[:5] == [0.0] * 5  # the surer of two classes has at least one half
    assert 0 <= found["judge/class_agreement_least"] <= found["judge/class_agreement"] <= 1
    refused = launch.run("evaluate", f"--workdir={folder / 'run'}", f"--judge={folder / 'run'}")
    assert refused.returncode == 2 and "is no classifier" in refused.stderr


def test_sample_repeats_by_seed(setup):
    folder, _ = setup
    paths = [verb("sample", f"--workdir={folder / 'run'}", "--count=5", f"--seed={seed}").split()[-1] for seed in (1, 1, 2)]
    arrays = [np.load(p.replace(".png", ".npz"))["mean"] for p in paths]
    assert arrays[0].shape == (5, 8, 8, 1) and paths[0] == paths[1] != paths[2]
    assert not np.array_equal(arrays[0], arrays[2])


def test_sample_of_a_class_comes_from_its_training_codes(setup):
    """In place of a conditional model: pictures of a class are nearer to that class's mean picture than the other class's are."""
    folder, _ = setup
    paths = [verb("sample", f"--workdir={folder / 'run'}", "--count=9", f"--label={name}", *more).split()[-1]
             for name, more in (("left", ()), ("right", ()), ("left", ("--spread=0.5",)))]
    left, right, narrow = (np.load(p.replace(".png", ".npz"))["mean"] for p in paths)
    rows = records.open_split(folder / "data", "train").read_all(["image", "label"])
    axis = np.subtract(*((rows["image"][rows["label"] == c] / 255.0).mean(0) for c in (0, 1)))
    assert left.shape == narrow.shape == (9, 8, 8, 1) and ((left - right) * axis).sum() > 0 and "class0-spread0.5" in paths[2]
    (folder / "data").rename(folder / "away")
    found = launch.run("sample", f"--workdir={folder / 'run'}", "--label=left")
    (folder / "away").rename(folder / "data")
    assert found.returncode == 2 and "the data this run was trained on is needed" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("name, flags, sentence", [
    ("sample", ("--label=up",), "classes are left, right"), ("sample", ("--spread=1",), "--spread goes with --label"),
    ("reconstruct", ("--wav=any.wav",), "this run's data holds pictures")])
def test_a_mistake_is_one_sentence(setup, name, flags, sentence):
    found = launch.run(name, f"--workdir={setup[0] / 'run'}", *flags)
    assert found.returncode == 2 and sentence in found.stderr and "Traceback" not in found.stderr


def test_reconstruct_reports_the_error_it_shows(setup):
    folder, _ = setup
    out = verb("reconstruct", f"--workdir={folder / 'run'}", f"--data={folder / 'data'}", "--split=test[:7]")
    rows = np.load(out.split()[-1].replace(".png", ".npz"))
    mse = ((rows["original"] / 255.0 - rows["reconstruction"]) ** 2).reshape(7, -1).mean(1)
    np.testing.assert_allclose(rows["mse"], mse, rtol=1e-4)
    assert f"{mse.mean():.5f}" in out


def test_report_is_a_page_that_loads_nothing_from_elsewhere(setup):
    folder, _ = setup
    page = open(verb("report", f"--workdir={folder / 'run'}", "--animate").split()[-1]).read()
    assert "Content-Security-Policy" in page and html.escape("default-src 'none'") in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert (folder / "run" / "report" / "training.gif").exists() and "reconstructions.png" in page and "components.png" in page


def test_bench_prints_its_figures(setup):
    _, config = setup
    found = json.loads(verb("bench", f"--config={config}", "--steps=3"))
    assert found["step_ms"] > 0 and found["flops_per_step"] > 0 and 0 <= found["input_wait_share"] <= 1
    assert found["batch"] == 16 and found["parameters"] > 64 * 16


def test_reproduce_writes_its_row_and_says_what_was_not_met(setup):
    folder, config = setup
    text = open(config).read().replace('name="toy"', 'name="toy-row", measures={"nll": 20}, targets=('
                                       'Target("eval/test/nll", 0.0, "<=", source="nobody"), Target("eval/test/loss", 1e6, "<=", source="anybody"), '
                                       'Target("eval/test/beauty", 1.0, ">=", source="none"))')
    path = folder / "targets.py"
    path.write_text(text.replace("Optim, Run", "Optim, Run, Target"))
    out = verb("reproduce", f"--config={path}", f"--workdir={folder / 'row'}", cwd=folder)
    row = json.loads((folder / "experiments" / "results" / "toy-row.json").read_text())
    assert [t["met"] for t in row["targets"]] == [False, True, False] and row["targets"][2]["ours"] is None
    assert row["seed"] == 5 and row["steps"] == 60 and out.count("NOT MET") == 2 and "seed 5" in out


def test_verify_says_where_a_data_set_is_damaged(setup):
    folder, _ = setup
    assert "whole" in verb("verify", f"--data={folder / 'data'}")
    shard = next((folder / "data").glob("*-test.tfrecord-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    found = launch.run("verify", f"--data={folder / 'data'}")
    shard.write_bytes(whole)
    assert found.returncode == 2 and shard.name in found.stderr and "record 0" in found.stderr and "Traceback" not in found.stderr


def test_bench_times_griffin_lim_beside_librosas(setup, tmp_path):
    toys.sounds(tmp_path / "tones")
    sounds = ("--config=experiments/genres.py", f"--config.data.dir={tmp_path / 'tones'}", "--config.run.compile_cache=",
              "--config.model.sound.n_fft=64", "--config.model.sound.hop=32", "--config.model.sound.iterations=10")
    found = json.loads(verb("bench", *sounds, "--griffin_lim=12"))
    assert found["clips"] == 12 and found["seconds"] == 12 * toys.SAMPLES / toys.RATE and found["iterations"] == 10 and found["device"] == "cpu"
    assert min(found["ours_s"], found["librosa_s"], found["ratio"], found["compile_s"]) > 0
    assert 0 < found["ours_convergence"] < 0.5 and 0 < found["librosa_convergence"] < 0.5
    for flags, sentence in (((f"--config={setup[1]}", "--griffin_lim=2"), "holds none"), ((*sounds, "--griffin_lim=25"), "more clips than the 24")):
        refused = launch.run("bench", *flags)
        assert refused.returncode == 2 and sentence in refused.stderr and "Traceback" not in refused.stderr
