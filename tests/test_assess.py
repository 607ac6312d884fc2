"""Figures of a run against data whose factors are known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import assess, data, records
from vae_jax import mesh as meshes
from vae_jax.config import Config, Data, Eval
from vae_jax.records import Field

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
