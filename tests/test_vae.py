"""The VAE task: its bounds, its families, and what its functions promise to the code around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vae_jax import config as configs
from vae_jax import data, records, session, tasks
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import Config, Data, Optim, Run, UserError
from vae_jax.models import vae as vae_models
from vae_jax.tasks import vae

VARIANTS = {
    "dense": {}, "conv": dict(family="conv", hidden=(4, 8), shortcut=True), "lstm": dict(family="lstm", hidden=(8,)),
    "rows": dict(family="lstm", hidden=(8,), autoregressive=True), "label": dict(condition="label"), "gated": dict(activation="gated", binarize=True),
    "full": dict(prior="mixture", covariance="full", anneal_steps=5), "vamp": dict(prior="vamp", components=3), "sigma": dict(likelihood="gaussian"),
    "logistic": dict(likelihood="logistic_mixture", mixtures=2), "continuous": dict(likelihood="continuous_bernoulli"),
    "plain": dict(variational=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.pictures(tmp_path_factory.mktemp("vae") / "toy")


@pytest.fixture(scope="module")
def batch(folder):
    return {k: jnp.asarray(v) for k, v in data.Source(folder, "train").read(np.arange(16)).items()}


def make(folder, **model):
    config = Config(model=vae.Model(**{**dict(hidden=(12,), latent=3, components=4), **model}), data=Data(dir=folder, batch=16),
                    optim=Optim(lr=1e-2, decay_steps=100), run=Run(steps=100))
    return tasks.get(config, records.open_folder(folder)), config


@pytest.fixture(scope="module")
def trained(folder, batch):
    """name -> (task, params after a few steps, metrics of the steps)."""
    found = {}
    for name, model in VARIANTS.items():
        task, config = make(folder, **model)
        state = jax.jit(lambda b, t=task, c=config: updates.init_state(t, c, b))(batch)
        update = updates.make_update(task, config, meshes.make(1))
        state, logs = jax.device_put(state, meshes.replicated(meshes.make(1))), []
        for _ in range(5):
            state, log = update(state, batch, ("train",))
            logs.append(jax.device_get(log))
        assert update._cache_size() == 1  # compiled once
        found[name] = task, state.params, logs
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_learns_and_keeps_its_contracts(trained, batch, name):
    task, params, logs = trained[name]
    assert logs[-1]["objective"] < logs[0]["objective"] and all(log["finite"] for log in logs)
    rows = jax.jit(task.metrics)(params, {}, batch, jax.random.key(0))
    assert all(len(v) == 16 and np.isfinite(v).all() for v in rows.values())
    np.testing.assert_allclose(rows["loss"], rows["reconstruction"] + rows["kl"], rtol=1e-5)
    encode, decode, sample = jax.jit(task.encode), jax.jit(task.decode), jax.jit(task.sample)
    first, second = (encode(params, {}, batch) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)  # A6: the code's moments are no draw
    given = task.condition(batch) if task.condition else None
    picture = decode(params, {}, first["mean"], given)["image"]
    assert picture.shape == batch["image"].shape
    request = {"temperature": jnp.ones(6), "label": jnp.arange(6) % 2}
    made = [sample(params, {}, jax.random.key(k), request) for k in (1, 1, 2)]
    assert all(np.isfinite(v).all() and len(v) == 6 for v in made[0].values())
    jax.tree.map(np.testing.assert_array_equal, made[0], made[1])
    assert not np.array_equal(made[0]["image/draw"], made[2]["image/draw"])


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "plain"])
def test_importance_weighted_bound_is_above_the_elbo_and_tightens(trained, batch, name):
    task, params, _ = trained[name]
    nll = jax.jit(task.measures["nll"], static_argnums=4)
    one, few, many = (np.mean([nll(params, {}, batch, jax.random.key(k), s)["nll"].mean() for k in range(n)])
                      for s, n in ((1, 40), (4, 10), (400, 1)))
    assert many <= few + 0.05 <= one + 0.3 and many < one


def test_chunks_do_not_change_the_importance_weighted_estimate(trained, batch):
    """Many draws in several chunks agree with the mean of smaller estimates, by hand."""
    task, params, _ = trained["dense"]
    tiny = {k: v[:2] for k, v in batch.items()}
    samples = 3 * 1024  # several chunks for a batch of 2
    nll = jax.jit(task.measures["nll"], static_argnums=4)
    both = nll(params, {}, tiny, jax.random.key(1), samples)["nll"]
    by_parts = [nll(params, {}, tiny, jax.random.key(k), samples // 16)["nll"] for k in range(2, 18)]
    np.testing.assert_allclose(both, -jax.nn.logsumexp(-jnp.stack(by_parts), 0) + np.log(16), atol=0.1)


def test_an_autoregressive_decoder_feeds_back_what_it_was_taught(trained, batch):
    """Decoding on its own rows equals the teacher-forced pass over those same rows."""
    decoder = vae_models.Decoder("lstm", (8,), (8, 8, 1), autoregressive=True)
    _, params, _ = trained["rows"]
    z = jax.random.normal(jax.random.key(0), (5, 3))
    mean = lambda row: jax.nn.sigmoid(row["x"])
    own = jax.jit(lambda p, z: decoder.apply(p, z, None, None, lambda row, t: mean(row)))(params["decoder"], z)
    read = jax.jit(lambda p, z, rows: decoder.apply(p, z, None, rows))
    taught = read(params["decoder"], z, mean(own))
    np.testing.assert_allclose(own["x"], taught["x"], atol=1e-5)
    changed = read(params["decoder"], z, mean(own).at[:, 5, 3:].set(0.0).at[:, 6:].set(0.0))["x"]
    np.testing.assert_allclose(changed[:, :5], own["x"][:, :5], atol=1e-5)  # what comes later must not matter
    np.testing.assert_allclose(changed[:, 5, :4], own["x"][:, 5, :4], atol=1e-5)
    assert np.all(np.abs(changed[:, 5, 4:] - own["x"][:, 5, 4:]).max((0, 2)) > 1e-4)  # and what comes before must


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_an_autoregressive_draw_is_the_rows_that_were_read(folder, batch, likelihood):
    """Row t of a draw comes from outputs computed on rows before t of that same draw."""
    task, _ = make(folder, family="lstm", hidden=(8,), autoregressive=True, likelihood=likelihood)
    params, _ = task.init(jax.random.key(0), batch)
    request = {"temperature": jnp.zeros(5)}  # the code is known, 0
    made = jax.jit(task.sample)(params, {}, jax.random.key(3), request)
    decoder = vae_models.Decoder("lstm", (8,), (8, 8, 1), learned_sigma=likelihood == "gaussian", autoregressive=True)
    taught = jax.jit(decoder.apply)(params["decoder"], jnp.zeros((5, 3)), None, made["image/draw"])
    expected = jax.nn.sigmoid(taught["x"]) if likelihood == "bernoulli" else taught["x"]
    np.testing.assert_allclose(made["image/mean"], expected, atol=1e-5)


def test_beta_scales_only_the_kl_and_evaluation_ignores_it(folder, batch):
    (plain, _), (weighted, _) = make(folder), make(folder, beta=3.0)
    params, _ = plain.init(jax.random.key(0), batch)
    a, b = (t.moves["train"].loss(params, {}, batch, jax.random.key(1), 0)[1][1] for t in (plain, weighted))
    assert b["objective"] == pytest.approx(float(b["reconstruction"] + 3 * b["kl"]), rel=1e-6)
    assert b["loss"] == pytest.approx(float(a["loss"]), rel=1e-6)
    e, f = (t.metrics(params, {}, batch, jax.random.key(1))["loss"] for t in (plain, weighted))
    np.testing.assert_array_equal(e, f)


def test_annealing_ends_in_the_plain_objective(folder, batch):
    (plain, _), (annealed, _) = (make(folder, prior="mixture", components=4, anneal_steps=n) for n in (0, 3))
    params, _ = plain.init(jax.random.key(0), batch)
    hot, warm, done, after = (float(annealed.moves["train"].loss(params, {}, batch, jax.random.key(1), step)[0]) for step in (0, 2, 3, 9))
    exact = float(plain.moves["train"].loss(params, {}, batch, jax.random.key(1), 3)[0])
    assert hot > warm > exact  # an upper bound, the closer the colder
    assert done == after == pytest.approx(exact, rel=1e-6)


def test_temperature_zero_is_the_mean_of_the_prior(folder, batch):
    task, _ = make(folder, prior="mixture", components=4)
    params, _ = task.init(jax.random.key(0), batch)
    params["prior"]["shift"] += 2.0
    made = task.sample(params, {}, jax.random.key(1), {"temperature": jnp.zeros(3)})["image/mean"]
    centre = params["prior"]["shift"] + params["prior"]["mean"].mean(0)
    np.testing.assert_allclose(made, task.decode(params, {}, jnp.tile(centre, (3, 1)))["image"], rtol=1e-4, atol=1e-6)


def test_the_linear_path_of_large_pictures_begins_like_that_of_small_ones():
    """Codes of unit variance from either, and a weight's step moves them by as much as in a picture of PIXELS pixels."""
    for side in (16, 128):
        x = jax.random.uniform(jax.random.key(0), (8, side, side, 1))
        encoder = vae_models.Encoder("conv", (2, 2), 64, shortcut=True)
        variables = encoder.init(jax.random.key(1), x)
        alone = {"params": jax.tree.map(jnp.zeros_like, variables["params"]) | {"shortcut": variables["params"]["shortcut"]}}
        mean, _ = encoder.apply(alone, x)
        expected = np.float64(jnp.square(x - vae_models.GREY).mean()) ** 0.5
        assert mean.std() == pytest.approx(expected, rel=0.2)
        up = jax.tree.map(lambda w: w + 1e-3, alone["params"]["shortcut"])
        moved = encoder.apply({"params": alone["params"] | {"shortcut": up}}, x)[0] - mean
        np.testing.assert_allclose(moved[:, 0], 1e-3 * min(side**2, vae_models.PIXELS) * (x - vae_models.GREY).mean((1, 2, 3)), rtol=1e-2, atol=1e-3)


def test_dynamic_binarization_follows_the_key(folder, batch):
    task, _ = make(folder, binarize=True)
    params, _ = task.init(jax.random.key(0), batch)
    losses = [float(task.moves["train"].loss(params, {}, batch, jax.random.key(k), 0)[0]) for k in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_golden_scalars_after_three_steps(folder, batch):
    """Changes when initialisation, losses, randomness or the update change: then look whether that was meant, and copy the new values."""
    with jax.default_matmul_precision("highest"):
        task, config = make(folder, family="conv", hidden=(4, 8), prior="mixture")
        state = jax.jit(lambda batch: updates.init_state(task, config, batch))(batch)
        update = jax.jit(lambda state, batch: updates.update(task, config, state, batch, ("train",)))
        for _ in range(3):
            state, log = update(state, batch)
    found = {k: float(log[k]) for k in ("loss", "kl", "reconstruction", "grad_norm")}
    assert found == pytest.approx(GOLDEN, rel=2e-4), found


GOLDEN = {"loss": 45.438801, "kl": 0.05506356, "reconstruction": 45.383736, "grad_norm": 8.7785006}


@pytest.mark.parametrize("model, sentence", [
    (dict(family="conv", hidden=(4, 4, 4, 4)), "multiple of 16"), (dict(likelihood="poisson"), "poisson"), (dict(prior="flow"), "flow"),
    (dict(autoregressive=True), "lstm"), (dict(family="lstm", autoregressive=True, shortcut=True), "one of them to False"),
    (dict(anneal_steps=100), "mixture"),
    (dict(frozen="critic"), "encoder, decoder"), (dict(warmup="linear"), "warmup_steps"), (dict(condition="label", prior="vamp"), "vamp"),
    (dict(activation="gated", family="conv"), "activation"), (dict(free_bits_dimension=1.0, free_bits_example=1.0), "Free bits")])
def test_settings_that_do_not_fit_are_one_sentence(folder, model, sentence):
    with pytest.raises(UserError, match=sentence):
        make(folder, **model)


def test_a_frozen_player_keeps_its_bits(folder, batch):
    task, config = make(folder, frozen="encoder", prior="mixture")
    state = jax.jit(lambda b: updates.init_state(task, config, b))(batch)
    after, log = jax.jit(lambda s, b: updates.update(task, config, s, b, ("train",)))(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], state.params["encoder"])
    assert set(after.opt) == {"decoder", "prior"} and log["grad_norm"] > 0
    for player in after.opt:
        assert not all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (after.params[player], state.params[player]))))


def test_start_from_freezes_nothing_it_should_not_and_checks_shapes(folder, tmp_path):
    from vae_jax import train

    def config(**model):
        _, c = make(folder, **model)
        c.run, c.eval.batch = Run(steps=3, save_every=3, log_every=1), 8
        c.data.train, c.data.test = "train", "test"
        return c

    train.train(config(), str(tmp_path / "first"))
    first = session.open_run(str(tmp_path / "first"))
    second = config()
    second.start_from, second.optim.lr = f"decoder={tmp_path / 'first'}", 0.0
    train.train(second, str(tmp_path / "second"))
    after = session.open_run(str(tmp_path / "second"))
    jax.tree.map(np.testing.assert_array_equal, after.params["decoder"], first.params["decoder"])
    assert not np.array_equal(*(jax.tree.leaves(r.params["encoder"])[1] for r in (first, after)))
    assert (tmp_path / "second" / "start_from_decoder.json").exists()
    wrong = config(latent=5)
    wrong.start_from = f"decoder={tmp_path / 'first'}"
    with pytest.raises(UserError, match="same config.model"):
        train.train(wrong, str(tmp_path / "third"))
    for text, sentence in [(f"critic={tmp_path / 'first'}", "players are"), ("decoder", "should be PLAYER=RUN"),
                           ("decoder=nowhere", "not a run folder")]:
        wrong = config()
        wrong.start_from = text
        with pytest.raises(UserError, match=sentence):
            train.train(wrong, str(tmp_path / f"wrong{len(text)}"))


def test_a_stored_configuration_is_checked_field_by_field(folder):
    _, config = make(folder)
    stored = configs.to_dict(config)
    for change, sentence in [({"nonsense": 1}, "no field 'nonsense'"), ({"seed": "x"}, "config.seed should be int"),
                             ({"model": {"latent": 2.5}}, "config.model.latent"), ({"task": "os"}, "config.task='os'")]:
        with pytest.raises(UserError, match=sentence):
            configs.load(__import__("json").dumps({**stored, **change}))
