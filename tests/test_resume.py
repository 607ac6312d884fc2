"""A run that is killed and started again equals an unbroken one bit for bit; signals save and leave; bad runs say why."""

import dataclasses
import json
import random
import runpy
import shutil
import signal

import jax
import launch
import numpy as np
import pytest
import toys
from etils import epath

from vae_jax import checkpoint, records, session, tasks, train
from vae_jax import config as configs
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import UserError

STEPS = 400


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    config = launch.write_config(folder, toys.pictures(folder / "data"), STEPS)
    whole = launch.run("train", f"--config={config}", f"--workdir={folder / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    return folder, config


def everything(workdir):
    """All that must be equal: every leaf of the last and the best checkpoint, their [meta, step] with the loop's progress, the log without perf/."""
    config, mesh = configs.read(workdir), meshes.make(1)
    spec = records.Spec.from_dict(json.loads((workdir / "spec.json").read_text()))
    task = tasks.get(config, spec)
    shapes = jax.eval_shape(lambda b: updates.init_state(task, config, b), session.example(spec, config.data.batch))
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=meshes.replicated(mesh)), shapes)
    leaves, found = {}, {}
    for name in ("checkpoints", "best_main"):
        state, *found[name] = checkpoint.Checkpoints(workdir / name).restore(target)
        leaves |= {name + jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(state.replace(key=jax.random.key_data(state.key)))}
    log = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in launch.lines(workdir)]
    return leaves, found, log


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_and_resumed_equals_unbroken(setup, seed):
    folder, config = setup
    workdir, at = folder / f"killed{seed}", random.Random(seed).randrange(40, STEPS - 60)
    broken = launch.start("train", f"--config={config}", f"--workdir={workdir}")
    launch.wait_for_step(workdir, at, broken)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert broken.returncode == -signal.SIGKILL
    assert checkpoint.Checkpoints(workdir / "checkpoints").latest() != STEPS, "killed too late to test anything"
    again = launch.run("train", f"--config={config}", f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    (ours, found, log), (expected, expected_found, expected_log) = everything(workdir), everything(folder / "whole")
    assert ours.keys() == expected.keys() and len(ours) > 40
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)
    assert log == expected_log
    (meta, step), (_, best) = found["checkpoints"], found["best_main"]
    assert found == expected_found and step == STEPS and 0 < best <= STEPS and meta["progress"]["best"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave(setup, number):
    folder, config = setup
    workdir = folder / f"signal{number}"
    process = launch.start("train", f"--config={config}", f"--workdir={workdir}")
    launch.wait_for_step(workdir, 60, process)
    process.send_signal(number)
    out, err = launch.finish(process)
    assert process.returncode == 0, err
    assert "left on request" in out and "Traceback" not in err
    step = checkpoint.Checkpoints(workdir / "checkpoints").latest()
    assert step is not None and f"saved step {step}" in out
    again = launch.run("train", *[f"--config={config}"] * (number == signal.SIGTERM), f"--workdir={workdir}")  # or as the run was configured
    assert again.returncode == 0, again.stderr
    assert everything(workdir)[2] == everything(folder / "whole")[2]


def test_another_experiment_in_the_workdir_is_refused(setup):
    folder, config = setup
    found = launch.run("train", f"--config={config}", f"--workdir={folder / 'whole'}", "--config.optim.lr=0.5", "--config.run.steps=999")
    assert found.returncode == 2 and "optim.lr: 0.002 stored, 0.5 given" in found.stderr and "Traceback" not in found.stderr
    assert "run.steps" not in found.stderr


def test_killed_before_the_configuration_was_stored(setup, tmp_path):
    """The next command, even with other data, begins the run; a folder with anything else is still refused."""
    _, config = setup
    for name in ("lock", "spec.json", "config.json.partial", "start_from_encoder.json"):
        (tmp_path / name).write_text("{")
    given = runpy.run_path(config)["get_config"]()
    assert train.agree(given, epath.Path(tmp_path)).optim == dataclasses.replace(given.optim, decay_steps=STEPS)
    spec = records.open_folder(given.data.dir)
    assert session.same_spec(epath.Path(tmp_path), spec) is spec
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train.agree(given, epath.Path(tmp_path))


def test_a_longer_run_goes_on(setup):
    folder, config = setup
    shutil.copytree(folder / "whole", folder / "longer")
    found = launch.run("train", f"--config={config}", f"--workdir={folder / 'longer'}", f"--config.run.steps={STEPS + 20}")
    assert found.returncode == 0, found.stderr
    assert launch.lines(folder / "longer")[-1]["step"] == STEPS + 20


@pytest.mark.parametrize("lr, sentence", [("1e18", "The last good checkpoint is step "), ("1e39", "No checkpoint was saved before that.")])
def test_a_value_that_is_not_finite_stops_the_run_and_is_never_saved(setup, lr, sentence):
    folder, config = setup
    workdir = folder / f"nan{lr}"
    # 1e18 goes wrong a few steps in, 1e39 in the first update, whose metrics are finite. Every step is to be saved; the log looks only at step 50.
    found = launch.run("train", f"--config={config}", f"--workdir={workdir}", f"--config.optim.lr={lr}", "--config.optim.clip=0.0",
                       "--config.run.save_every=1", "--config.run.log_every=50")
    assert found.returncode == 2 and "were not finite" in found.stderr and "Traceback" not in found.stderr
    assert sentence in found.stderr and len(found.stderr.splitlines()[-1]) < 500, found.stderr
    steps = checkpoint.Checkpoints(workdir / "checkpoints", keep=99).steps()
    assert all(0 < step < 50 for step in steps) and bool(steps) == (lr == "1e18")
    for saved, step in [(workdir / "checkpoints", step) for step in steps] + [(workdir / "best_main", 0)]:
        tree, _ = checkpoint.read_tree(saved, ("params", "variables", "opt", "ema"), step)
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(tree))


@pytest.mark.parametrize("flag, sentence", [
    ("--config.data.dir=nowhere", "nowhere"), ("--config.data.batch=0", "config.data.batch"), ("--config.model.family=cubist", "config.model.family"),
    ("--config.optim.lr=fast", "lr"), ("--config.data.train=trian", "trian"), ("--config.nonsense=1", "nonsense"), ("--config.task=poetry", "poetry"),
    ("--config.eval.metric=beauty", "config.eval.metric='beauty'")])
def test_mistakes_are_one_sentence(setup, flag, sentence):
    folder, config = setup
    found = launch.run("train", f"--config={config}", f"--workdir={folder / 'mistake'}", flag)
    assert found.returncode == 2 and sentence in found.stderr, found.stderr
    assert "Traceback" not in found.stderr and len(found.stderr.strip().splitlines()) <= 2, found.stderr
    assert not (folder / "mistake" / "config.json").exists(), "the corrected command must not be refused"


def test_config_with_another_verb_is_one_error(setup):
    folder, config = setup
    found = launch.run("evaluate", f"--config={config}", f"--workdir={folder / 'whole'}")
    assert found.returncode == 2 and "config" in found.stderr and "Traceback" not in found.stderr
