"""Every file in experiments/ fits the engine in every variant, and runs shrunken steps through the whole loop."""

import ast
import dataclasses
import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import toys

from vae_jax import config as configs
from vae_jax import data, metrics, records, tasks, train, update

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p for p in (ROOT / "experiments").glob("*.py"))
# Experiments and variants on sounds
SOUNDS = ("fsdd", "genres", "rave", "rave_small", "rave_v1", "speaker", "spectrogram", "voices", "bands", "wave_vqvae", "wavenet")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path):
    """Names a file's error message or docstring offers, by asking for one it cannot have."""
    module = load(path)
    if "variant" not in module.get_config.__code__.co_varnames[: module.get_config.__code__.co_argcount]:
        return [None]
    with pytest.raises(configs.UserError) as error:
        module.get_config("no such variant")
    return re.search(r"it has (.*)\.$", str(error.value)).group(1).split(", ")


CASES = [(path, variant) for path in FILES for variant in variants(path)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data sets of pictures, of sounds and of rolls."""
    base, counts = tmp_path_factory.mktemp("experiments"), {"train": 24, "validation": 8, "test": 8}
    toys.sounds(base / "sounds", counts)
    toys.rolls(base / "rolls", counts)
    return {"image": toys.pictures(base / "pictures", counts, size=16), "audio": str(base / "sounds"), "roll": str(base / "rolls")}


def shrunken(path, variant, folders):
    """The experiment on toy data, small, for two steps on one device."""
    config = load(path).get_config(*([variant] if variant else []))
    assert configs.load(json.dumps(configs.to_dict(config))) == config, "a stored configuration reads back as it was"
    assert config.name and config.data.dir.startswith("datasets/")
    roll = path.stem == "midi" or f"{path.stem}:{variant}" in ("judge:rolls", "peers:lstm")
    kind = "roll" if roll else "audio" if path.stem in SOUNDS or variant in SOUNDS else "image"
    config.data = dataclasses.replace(config.data, dir=folders[kind], batch=8, train="train", validation=config.data.validation and "validation",
                                      test="test")
    config.eval = dataclasses.replace(config.eval, batch=8, every=2)
    config.run = dataclasses.replace(config.run, steps=2, log_every=1, save_every=2, devices=1)
    if config.task == "rave":
        config.data.crop = 768
        config.model = dataclasses.replace(config.model, capacity=2, critic_capacity=2, ratios=(2, 2), windows=(64, 32), high_hz=1000.0,
                                           noise_ratios=(2, 2), representation_steps=1, critic_periods=config.model.critic_periods[:1])
        config.model.augment.allpass_high_hz = 1000.0
    if config.task == "wave_vqvae":
        config.data.crop = 256
    for model in (config.model, getattr(config.model, "autoencoder", None)):
        if hasattr(model, "cycles"):
            model.cycles, model.layers, model.residual, model.gate, model.skip = 1, 2, 4, 4, 8
    if hasattr(config.model, "components"):
        config.model.components = min(config.model.components, 4)
        config.model.hidden = tuple(min(h, 8) for h in config.model.hidden[:2])
    return config


@pytest.mark.parametrize("path, variant", CASES, ids=[f"{p.stem}-{v or 'only'}" for p, v in CASES])
def test_every_variant_fits_the_engine(path, variant, folders):
    """Shapes and types of the state, of a step and of its evaluation, without computing them."""
    config = shrunken(path, variant, folders)
    task = tasks.get(config, data.cropped(records.open_folder(config.data.dir), config.data.crop))
    rows = data.open_source(config.data, "train").read(np.arange(8))
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in rows.items()}
    state = jax.eval_shape(lambda b: update.init_state(task, config, b), batch)
    after, found = jax.eval_shape(lambda s, b: update.update(task, config, s, b, task.schedule(0)), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape == () for name, value in found.items() if name != "bad_terms")
    rows = jax.eval_shape(lambda p, v, b: task.metrics(p, v, b, jax.random.key(0)), state.params, state.variables, batch)
    assert rows and all(value.shape[0] == 8 for value in rows.values())


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_an_experiment_runs_two_shrunken_steps(path, folders, tmp_path):
    config = shrunken(path, variants(path)[0], folders)
    if config.task == "code_prior":  # it stands on a trained autoencoder
        train.train(shrunken(path.with_name("vqvae.py"), variants(path)[0], folders), str(tmp_path / "origin"))
        config.start_from = ",".join(f"{player}={tmp_path / 'origin'}" for player in ("encoder", "quantizer", "decoder"))
    result = train.train(config, str(tmp_path / "run"))
    assert np.isfinite(result["eval/test/loss"])
    losses = [line["train/loss"] for line in metrics.read(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all() and losses[0] != losses[1]


def test_every_file_begins_with_its_launch_command():
    for path in FILES:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert f"--config=experiments/{path.name}" in doc, path.name


def test_nothing_executes_what_it_loads():
    """No pickle, no evaluation of text, no shell, in any module that opens run folders or data."""
    for path in [*(ROOT / "vae_jax").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{path.name}:{node.lineno}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + ([node.module] if isinstance(node, ast.ImportFrom) else [])
                assert not {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib"} & set(names), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
                assert not getattr(node.value, "value", True), f"{path.name}:{node.value.lineno}"
