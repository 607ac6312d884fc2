"""Figures of a run against data whose factors are known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toys

from vae_jax import assess, data, records
from vae_jax import mesh as meshes
from vae_jax.config import Config, Data, Eval
from vae_jax.records import Field
from vae_jax.tasks import classifier

FIELDS = {"image": Field((2, 2, 1), "uint8"), "zoom": Field((2,), "float32"), "group": Field((), "str"), "source": Field((), "str")}


@pytest.fixture
def run(tmp_path):
    """20 sources of 30 versions in 10 groups. The code follows zoom 1 everywhere; zoom 0 with a sign that changes from source to source."""
    rng, rows = np.random.default_rng(0), []
    for source in range(20):
        for _ in range(30):
            zoom = rng.uniform(0.7, 1.3, 2).astype(np.float32)
            sign = np.uint8(255 * (source % 2))
            rows.append({"image": np.full((2, 2, 1), sign), "zoom": zoom, "group": f"g{source // 2}", "source": f"s{source}"})
    still = [{**row, "zoom": np.ones(2, np.float32)} for row in rows[:40]]
    records.write(tmp_path / "toy", "toy", FIELDS, {"train": rows, "test": still})

    def encode(params, variables, batch):
        sign = jnp.where(batch["image"][:, 0, 0, 0] > 0, 1.0, -1.0)
        return {"mean": jnp.stack([sign * (batch["zoom"][:, 0] - 1.0), 3.0 * batch["zoom"][:, 1], 0.0 * sign], 1)}

    config = Config(data=Data(dir=str(tmp_path / "toy"), batch=8), eval=Eval(batch=64))
    return types.SimpleNamespace(config=config, spec=records.open_folder(tmp_path / "toy"), task=types.SimpleNamespace(encode=encode), params={},
                                 variables={}, mesh=meshes.make(1))


def test_a_factor_is_followed_by_one_direction_or_by_one_a_source(run):
    sources = {role: data.Source(run.config.data.dir, role) for role in ("train", "test")}
    found = assess._followed(run, sources)  # in test nothing varies
    assert found["eval/train/factor_zoom_1"] == pytest.approx(1.0, abs=1e-4)
    assert found["eval/train/factor_zoom_0"] < 0.3 and found["eval/train/factor_zoom_0_within"] == pytest.approx(1.0, abs=1e-4)
    assert set(found) == {f"eval/train/factor_zoom_{i}{kind}" for i in (0, 1) for kind in ("", "_within")}
    assert assess._followed(run, {"test": sources["test"]}) == {}


def test_agreement_of_a_judge_with_the_class_that_was_asked_for(tmp_path, monkeypatch):
    """Codes are the brightness of the two halves and pictures are made of them, so the judge's agreement is a normal integral."""
    folder = toys.pictures(tmp_path / "toy", {"train": 400, "test": 8})
    spec, config = records.open_folder(folder), Config(data=Data(dir=folder, batch=8), eval=Eval(batch=64))

    def halves(batch):
        x = jnp.asarray(batch["image"], jnp.float32) / (255 if batch["image"].dtype == jnp.uint8 else 1)
        return jnp.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], 1)

    def decode(params, variables, code, condition):
        return {"image": jnp.broadcast_to(jnp.repeat(code, 4, 1)[:, None, :, None], (len(code), 8, 8, 1))}

    def sample(params, variables, key, request):
        n = len(request["temperature"])
        return {"image/mean": decode(params, variables, jnp.where(jnp.arange(n)[:, None] % 4 == 0, jnp.eye(2)[0], jnp.eye(2)[1]), None)["image"]}

    front = types.SimpleNamespace(kind="image", shape=(8, 8, 1))
    task = types.SimpleNamespace(encode=lambda p, v, b: {"mean": halves(b), "logvar": jnp.full((len(b["image"]), 2), -30.0)}, decode=decode,
                                 sample=sample, condition=None, front=front)
    run = types.SimpleNamespace(config=config, spec=spec, task=task, params={}, variables={}, mesh=meshes.make(1), workdir=tmp_path)
    judge = types.SimpleNamespace(
        config=Config(task="classifier", model=classifier.Model(), data=config.data, eval=config.eval), spec=spec, params={}, variables={},
        mesh=meshes.make(1), task=types.SimpleNamespace(
            encode=lambda p, v, b: {"logits": 100.0 * (halves(b) - halves(b)[:, ::-1])}, summary=lambda s, q, n: {k: v / n for k, v in s.items()},
            metrics=lambda p, v, b, k: {"accuracy": (jnp.argmax(halves(b), -1) == b["label"]).astype(jnp.float32)}))
    monkeypatch.setattr(assess.session, "open_run", lambda folder: judge)
    found = assess.judged(run, "judge", {role: data.Source(folder, role) for role in ("train", "test")})
    assert found["judge/accuracy"] == 1 and found["judge/classes"] == 2 and found["judge/confidence_0.9"] == 1
    assert found["judge/class_agreement"] == 1 and found["judge/class_agreement_least"] == 1  # halves differ by 120 / 255, with little noise
    real = data.Source(folder, "test").read(np.arange(8))["image"].reshape(8, -1) / 255
    apart = np.sqrt(((real[:, None] - real) ** 2).mean(-1))[~np.eye(8, dtype=bool)]
    assert found["judge/diversity"] * apart.mean() == pytest.approx(2 * 0.25 * 0.75, rel=0.25)  # a quarter of the samples is one picture; 8 real ones
    assert found["judge/nearest"] > 1.5  # samples are black and white where training pictures are grey
    expected = scipy.stats.norm.cdf(120 / 255 / (0.5 * 2**0.5))
    assert found["judge/class_spread0.5_agreement"] == pytest.approx(expected, abs=0.04)  # 2,000 draws: 4 standard errors
