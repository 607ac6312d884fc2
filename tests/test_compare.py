"""Several runs side by side: what tells them apart names them, seeds are averaged."""

import csv
import json

import launch
import pytest
from PIL import Image

from vae_jax import config as configs
from vae_jax.config import Config
from vae_jax.tasks import rave, vae


def run_of(folder, seed, sigma, results, **task):
    folder.mkdir()
    config = Config(**{"name": "toy", "seed": seed, "model": vae.Model(sigma=sigma, likelihood="gaussian"), **task})
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    if results is not None:
        (folder / "evaluation.json").write_text(json.dumps({"results": results}))
    return str(folder)


def test_a_table_by_setting_with_seeds_averaged(tmp_path):
    figures = [{"eval/test/loss": loss, "eval/test/kl": kl, "eval/test/model_mse": 1 / kl} for loss, kl in ((10.0, 4.0), (13.0, 5.0), (7.0, 8.0))]
    runs = [run_of(tmp_path / f"run{i}", seed, sigma, f) for i, (seed, sigma, f) in enumerate(zip((0, 1, 0), (0.2, 0.2, 0.1), figures))]
    found = launch.run("compare", f"--runs={','.join(runs)}", f"--out={tmp_path / 'out'}")
    assert found.returncode == 0, found.stderr
    rows = list(csv.DictReader(open(tmp_path / "out" / "table.csv")))
    assert [row["settings"] for row in rows] == ["sigma=0.2", "sigma=0.1"] and [row["seeds"] for row in rows] == ["2", "1"]
    assert float(rows[0]["-ELBO"]) == 11.5 and float(rows[0]["-ELBO sd"]) == pytest.approx(3 / 2**0.5, rel=1e-5) and float(rows[1]["KL"]) == 8
    assert Image.open(tmp_path / "out" / "rate.png").size[0] > 500


def test_a_loss_has_the_name_of_what_it_is(tmp_path):
    """Of runs of two tasks it is just the loss."""
    figures = [{"eval/test/loss": 6.4, "eval/test/distance_ratio": 0.5, "eval/test/kl": 17.0},
               {"eval/test/loss": 7.2, "eval/test/distance_ratio": 0.6}, {"eval/test/loss": 90.0}]
    tasks = [{"task": "rave", "model": rave.Model(latent=d)} for d in (64, 128)] + [{}]
    runs = [run_of(tmp_path / f"run{i}", 0, 0.1, f, **task) for i, (f, task) in enumerate(zip(figures, tasks))]
    for given, columns in ((runs[:2], {"spectral distance": "6.4", "distance ratio": "0.5"}), (runs[1:], {"loss": "7.2"})):
        found = launch.run("compare", f"--runs={','.join(given)}", f"--out={tmp_path / 'out'}")
        assert found.returncode == 0 and "rate.png" not in found.stdout, found.stderr
        row = next(csv.DictReader(open(tmp_path / "out" / "table.csv")))
        assert {k: v for k, v in row.items() if k not in ("settings", "seeds") and not k.endswith(" sd")} == columns


def test_a_run_given_twice_is_no_second_seed(tmp_path):
    run = run_of(tmp_path / "one", 0, 0.1, {"eval/test/loss": 1.0})
    found = launch.run("compare", f"--runs={run},{run}", f"--out={tmp_path / 'out'}")
    assert found.returncode == 2 and "same experiment with the same seed" in found.stderr


def test_a_run_without_figures_is_named(tmp_path):
    runs = [run_of(tmp_path / "one", 0, 0.1, {"eval/test/loss": 1.0}), run_of(tmp_path / "two", 0, 0.2, None)]
    found = launch.run("compare", f"--runs={','.join(runs)}", f"--out={tmp_path / 'out'}")
    assert found.returncode == 2 and "two is not evaluated yet" in found.stderr and "Traceback" not in found.stderr
