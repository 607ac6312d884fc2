"""Exports opened without the project: sizes that are open, streams, cut latents, what the manifest says, and what is refused."""

import hashlib
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
import test_rave_verbs
import toys

from vae_jax import export, records, session, tasks
from vae_jax.config import Config, Data, UserError
from vae_jax.latents import fidelity
from vae_jax.tasks import rave, vae


def opened(folder):
    """(weights, functions) by the export's own loader"""
    spec = importlib.util.spec_from_file_location("loader", pathlib.Path(folder) / "loader.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    return loader.load()


def snr(wanted, found):
    wanted, found = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    return 10 * np.log10(np.sum(wanted**2) / (np.sum((wanted - found) ** 2) + 1e-100))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(a run of RAVE, its analysis, the directions of fidelity 0.8, its export cut to them, what the verb printed)"""
    folder = tmp_path_factory.mktemp("export")
    run = test_rave_verbs.make(folder, 1)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((500, 6)) * (3, 2, 1, 0.3, 0.1, 0.02) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    analysis = fidelity.fit(latents + 0.3)._replace(step=run.step)
    fidelity.save(analysis, run.workdir / "analysis.npz")
    found = launch.run("export", f"--workdir={run.workdir}", f"--out={folder / 'out'}", "--fidelity=0.8")
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    return run, analysis, fidelity.dims_for(analysis, 0.8), folder / "out", found.stdout


def test_the_manifest_says_what_is_there(exported):
    run, analysis, r, folder, said = exported
    about, live = json.loads((folder / "manifest.json").read_text()), rave.live(run.config, run.spec)
    known = {"task": "rave", "rate": 8000, "channels": 1, "hop": 16, "bands": 4, "latent": 6, "directions": r, "fidelity": 0.8, "step": 7,
             "stage": "representation", "latency_samples": live.latency, "latency_ms": live.latency / 8, "jax": jax.__version__,
             "platforms": ["cpu", "cuda", "tpu"], "licence": ""}
    assert {name: about[name] for name in known} == known and about["directions_for_fidelity"]["0.8"] == r == 3
    assert about["functions"]["encode"]["outputs"] == {"z": {"shape": ["b", "n", r], "dtype": "float32"}}
    assert about["functions"]["step"]["inputs"] == {"audio": {"shape": ["b", "16*n", 1], "dtype": "float32"}}
    assert set(about["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in about["files"].items())
    assert fidelity.load(folder / "analysis.npz").components == pytest.approx(analysis.components)
    assert not any("critic" in name for name in np.load(folder / "weights.npz").files)
    assert "done" in said and all(f"{name}: in a fresh process at most" in said for name in about["functions"])


def test_any_batch_and_any_length_on_the_directions_kept(exported):
    run, analysis, r, folder, _ = exported
    weights, functions = opened(folder)
    x = np.float32(0.2 * np.random.default_rng(2).standard_normal((3, 16 * 37, 1)))
    whole = jax.jit(run.task.encode)(run.params, run.variables, {"audio": x})["mean"]
    z = functions["encode"](weights, {"audio": x})["z"]
    wanted = (np.asarray(whole, np.float64) - analysis.mean) @ analysis.components[:r].T
    np.testing.assert_allclose(z, wanted, atol=1e-5 * np.abs(wanted).max())
    cut = jnp.float32(wanted @ analysis.components[:r] + analysis.mean)
    wanted = jax.jit(run.task.decode)(run.params, run.variables, cut)["audio"]
    assert snr(wanted, functions["decode"](weights, {"z": z})["audio"]) > 100
    late, hops = json.loads((folder / "manifest.json").read_text())["latency_samples"], 0
    state, parts = functions["start"](weights, {"audio": x[:, :16], "key": np.zeros(2, np.uint32)})["state"], []
    x = np.pad(x, ((0, 0), (0, late + 16 * 3), (0, 0)))
    for size in [1, 3] * (x.shape[1] // 64):
        made = functions["step"](weights, {"state": state, "audio": x[:, 16 * hops:16 * (hops + size)]})
        state, hops = made["state"], hops + size
        parts.append(np.asarray(made["audio"]))
    made = np.concatenate(parts, 1)[:, late:]
    assert made.shape[1] >= 16 * 20 and snr(np.asarray(wanted)[:, :16 * 20], made[:, :16 * 20]) > 100


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A VAE of labelled pictures that nobody trained."""
    folder = tmp_path_factory.mktemp("vae")
    spec = records.open_folder(toys.pictures(folder / "data"))
    model = vae.Model(hidden=(8,), latent=3, condition="label", prior="mixture", components=3)
    config = Config(name="toy", model=model, data=Data(dir=str(folder / "data")))
    task = tasks.get(config, spec)
    params, variables = task.init(jax.random.key(0), session.example(spec, 1))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    return session.Session(session.folder(str(folder / "run")), config, spec, task, mesh, params, variables, 5)


def test_a_vae_with_its_labels(conditional, tmp_path):
    run = conditional
    manifest, apart = export.write(run, str(tmp_path / "out"))
    assert set(apart) == {"encode", "decode", "sample"} and all(db > 100 for _, db in apart.values())
    weights, functions = opened(tmp_path / "out")
    image, label = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8), np.int32([0, 1, 0, 1, 1])
    z = functions["encode"](weights, {"image": image, "label": label})["z"]
    np.testing.assert_allclose(z, run.task.encode(run.params, {}, {"image": image, "label": label})["mean"], atol=1e-5)
    made = functions["decode"](weights, {"z": z, "label": label})["image"]
    np.testing.assert_allclose(made, run.task.decode(run.params, {}, z, jax.nn.one_hot(label, 2))["image"], atol=1e-5)
    assert np.abs(made - functions["decode"](weights, {"z": z, "label": 1 - label})["image"]).max() > 1e-3
    drawn = functions["sample"](weights, {"key": np.uint32([0, 7]), "temperature": np.ones(5, np.float32), "label": label})
    wanted = run.task.sample(run.params, {}, jax.random.key(7), {"temperature": jnp.ones(5), "label": label})
    np.testing.assert_allclose(drawn["image/mean"], wanted["image/mean"], atol=1e-5)
    with pytest.raises(UserError, match="there already and not empty"):
        export.write(run, str(tmp_path / "out"))


def test_an_export_that_differs_gets_no_name(conditional, tmp_path, monkeypatch):
    """Weights that were changed on the way are found out, and so are files that a fresh process cannot read."""
    savez = np.savez

    def changed(path, **arrays):
        savez(path, **{k: v * 1.001 if k.startswith("params/decoder") else v for k, v in arrays.items()})

    monkeypatch.setattr(export.np, "savez", changed)
    with pytest.raises(UserError, match="decode differs from the live model"):
        export.write(conditional, str(tmp_path / "out"))
    monkeypatch.setattr(export.np, "savez", savez)
    monkeypatch.setattr(export, "LOADER", "raise ValueError('cut short')")
    with pytest.raises(UserError, match="out.partial is left of an export that was not finished"):
        export.write(conditional, str(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be run in a fresh process: ValueError: cut short"):
        export.write(conditional, str(tmp_path / "other"))
    assert {path.name for path in tmp_path.iterdir()} == {"out.partial", "other.partial"}


def test_what_cannot_be_exported(conditional, tmp_path):
    with pytest.raises(UserError, match="has nothing to export"):
        export.write(conditional._replace(task=conditional.task._replace(exports={})), str(tmp_path / "out"))
