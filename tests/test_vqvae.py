"""The VQ-VAE's task and the prior over its codes, on small pictures."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from vae_jax import corruptions, records, session, tasks, update
from vae_jax import mesh as meshes
from vae_jax.config import Config, Data, Optim, UserError
from vae_jax.models import vqvae as models
from vae_jax.tasks import code_prior, vqvae

SMALL = dict(hidden=8, residual=4, blocks=1, codes=8, dims=4, kmeans=2, variance=0.1)
SPEC = records.Spec("toy", {"image": records.Field((16, 16, 3), "uint8"), "label": records.Field((), "int64", ("a", "b"))}, {"train": 8})
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8), "label": np.arange(8) % 2}


def quick(f, shardings=None):
    """Compiled without optimisation: compiling takes most of the time here."""
    return jax.jit(f, out_shardings=shardings, compiler_options={"xla_backend_optimization_level": 0})


def start(config):
    """task, a fresh state, and what takes a state so many steps further: (state, metrics of the last)."""
    task = tasks.get(config, SPEC)
    step = quick(lambda state, batch: update.update(task, config, state, batch, ("train",)))

    def train(state, steps):
        for _ in range(steps):
            state, found = step(state, BATCH)
        return state, found

    return task, quick(lambda batch: update.init_state(task, config, batch))(BATCH), train


def made(**settings):
    config = Config(task="vqvae", model=vqvae.Model(**SMALL | settings), optim=Optim(lr=1e-3))
    return config, *start(config)


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_published_sizes():
    shapes = jax.eval_shape(lambda k: (models.Encoder(128, 32, 2, 2, 64).init(k, jnp.zeros((1, 32, 32, 3))),
                                       models.Decoder(128, 32, 2, 2, 3).init(k, jnp.zeros((1, 8, 8, 64)))), jax.random.key(0))
    assert (size(shapes[0]), size(shapes[1])) == (372_416, 290_307)


@pytest.mark.parametrize("settings", [dict(), dict(quantizer="loss", condition="label"), dict(quantizer="fsq", grid=(4, 3)),
                                      dict(groups=2, levels=2, restart=0.5), dict(likelihood="categorical"), dict(likelihood="logistic_mixture")])
def test_every_kind_learns(settings):
    config, task, state, train = made(**settings)
    state, early = train(state, 2)
    state, late = train(state, 60)
    assert late["loss"] < early["loss"] and bool(late["finite"])
    code, rebuilt = quick(lambda *a: tasks.rebuild(task, *a))(state.params, state.variables, BATCH)
    q = vqvae.quantizer(config.model)
    assert code["indices"].shape == (8, 4, 4, q.groups * q.levels) and code["indices"].max() < q.codes and rebuilt["image"].shape == (8, 16, 16, 3)
    rows = quick(task.metrics)(state.params, state.variables, BATCH, jax.random.key(0))
    sums, squares = ({k: np.float64(f(v)).sum(0) for k, v in rows.items()} for f in (np.asarray, np.square))
    summary = task.summary(sums, squares, 8)
    x, rebuilt = BATCH["image"] / 255.0, np.asarray(rebuilt["image"])
    mse = np.mean((rebuilt - x) ** 2, (1, 2, 3))
    assert summary["mse"] == pytest.approx(mse.mean(), rel=1e-4) and summary["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-4)
    shares = [np.bincount(np.asarray(code["indices"])[..., c].reshape(-1), minlength=q.codes) for c in range(q.groups * q.levels)]
    assert summary["perplexity"] == pytest.approx(np.mean([np.exp(entropy(s)) for s in shares]), rel=1e-4)
    if settings.get("likelihood"):
        nats = summary["loss"] * 768 + 16 * math.log(8)
        assert summary["uniform_bits_per_dim"] == pytest.approx(nats / 768 / math.log(2), rel=1e-5)
    assert summary["uniform_bits_per_code"] == pytest.approx(math.log2(q.codes))
    assert summary["empirical_bits_per_code"] == pytest.approx(np.mean([entropy(s, base=2) for s in shares]), rel=1e-4)


def test_the_codebook_moves_by_averages_alone_and_where_the_loss_says():
    config, task, state, train = made()
    assert not jax.tree.leaves(state.params["quantizer"]) and state.variables["quantizer"]["codebook"].shape == (1, 1, 8, 4)
    after, _ = train(state, 1)
    assert float(after.variables["quantizer"]["weight"]) == pytest.approx(0.01)
    _, _, state, _ = made(quantizer="loss")
    assert not jax.tree.leaves(state.variables["quantizer"]) and size(state.params["quantizer"]) == 32


def test_statistics_of_the_codebook_are_those_of_the_whole_batch_on_any_number_of_devices():
    """K-means, averages, restarts and what is logged: one device against four, through the update of training."""
    config, task, fresh, _ = made(groups=2, restart=7.3)
    config.optim.lr = 1e-5  # at first Adam's step is as long for a gradient that is rounding alone, and the encoders would part
    found = []
    for mesh in (meshes.make(1), meshes.make(4)):
        step = quick(lambda state, batch: update.update(task, config, state, batch, ("train",)), meshes.replicated(mesh))
        state, restarts = jax.device_put(fresh, meshes.replicated(mesh)), 0
        for _ in range(3):
            state, logged = step(state, meshes.to_global(mesh, BATCH))
            restarts += int(logged["restarts"])
        found.append(jax.device_get((state.variables, {k: logged[k] for k in ("loss", "embedding", "commitment", "perplexity", "usage")})))
        assert restarts > 0
    assert found[0][0]["quantizer"]["weight"] == pytest.approx(1 - 0.99**3)
    jax.tree.map(lambda one, four: np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("kind", ["ema", "loss"])
def test_each_term_of_the_loss_moves_its_own_players(kind):
    """Of encoder, codebook and decoder, those that get a gradient of the reconstruction, the codebook and the commitment term."""
    _, task, state, _ = made(quantizer=kind)

    @quick
    @jax.jacrev
    def slopes(params):
        found = task.moves["train"].loss(params, state.variables, BATCH, jax.random.key(0), 0)[1][1]
        return jnp.stack([found["reconstruction"], found["embedding"], found["commitment"]])

    moved = {player: [any(np.any(leaf[i]) for leaf in jax.tree.leaves(tree)) for i in range(3)] for player, tree in slopes(state.params).items()}
    assert moved == {"encoder": [True, False, True], "quantizer": [False, kind == "loss", False], "decoder": [True, False, False]}


def test_perplexity_of_an_epoch_is_that_of_all_its_batches_together():
    _, task, _, _ = made()
    batches = [np.eye(8)[None, k] * 32.0 for k in range(4)]  # each of one code alone
    sums = {"loss": 0.0, "mse": 0.0, "psnr": 0.0, "counts": sum(batches)}
    summary = task.summary(sums, sums, 8)
    assert (summary["perplexity"], summary["usage"], summary["dead"]) == (pytest.approx(4.0), 0.5, 4)


def prior_config(**auto):
    return Config(task="code_prior", optim=Optim(lr=1e-2), data=Data(dir="datasets/toy"),
                  model=code_prior.Model(autoencoder=vqvae.Model(**SMALL | auto), channels=8, layers=2, first_kernel=3, hidden=8))


def test_a_prior_takes_no_other_codebook_and_no_random_one(tmp_path, monkeypatch):
    config, task, state, _ = made()
    origin = session.Session(tmp_path, config, SPEC, task, None, state.params, state.variables, 7)
    monkeypatch.setattr(session, "open_run", lambda folder: origin)

    fresh = start(prior_config())[1]

    def begin(players, facts=None, state=fresh):
        config = prior_config()
        config.start_from = ",".join(f"{player}=runs/vq" for player in players)
        return session.start_from(state, config, records.Spec(SPEC.name, SPEC.fields, SPEC.splits, "", facts or {}), tmp_path, meshes.make(1))

    begun = begin(vqvae.PLAYERS)
    jax.tree.map(np.testing.assert_array_equal, begun.variables["quantizer"], state.variables["quantizer"])
    for players in ((), ("encoder", "decoder")):
        with pytest.raises(UserError, match="does not train .*quantizer.*--config.start_from=.*quantizer=RUN"):
            begin(players)
    with pytest.raises(UserError, match="of quantizer in runs/vq, .*codebook.*use the same config.model"):
        begin(vqvae.PLAYERS, state=start(prior_config(codes=16))[1])  # encoder and decoder have the same shapes
    own = session.digest(state.params["encoder"], {})
    begin(vqvae.PLAYERS, {"players": {"encoder": own}})
    with pytest.raises(UserError, match="datasets/toy was made with other weights of encoder"):
        begin(vqvae.PLAYERS, {"players": {"encoder": own[::-1]}})


def test_a_decoder_that_is_told_the_class_under_a_prior_that_is_not():
    task, state, _ = start(prior_config(condition="label"))
    assert task.condition is not None
    request = {"temperature": np.ones(4, np.float32), "label": np.array([0, 1, 0, 1], np.int32)}
    drawn = quick(task.sample)(state.params, state.variables, jax.random.key(1), request)
    made = quick(task.decode)(state.params, state.variables, drawn["codes"], jax.nn.one_hot(request["label"], 2))["image"]
    np.testing.assert_allclose(drawn["image/mean"], made, atol=1e-6)
    other = quick(task.decode)(state.params, state.variables, drawn["codes"], jax.nn.one_hot(1 - request["label"], 2))["image"]
    assert np.abs(made - other).max() > 1e-3


def test_a_prior_over_the_codes_of_a_frozen_autoencoder():
    _, auto, first, train = made(groups=2)
    first, _ = train(first, 20)
    config = prior_config(groups=2)
    config.model.condition = "label"
    task, state, train = start(config)
    state = state.replace(params={**state.params, **first.params}, variables={**state.variables, **first.variables})
    kept = jax.tree.map(np.asarray, state.params)
    after, found = train(state, 30)
    for player in vqvae.PLAYERS:
        jax.tree.map(np.testing.assert_array_equal, after.params[player], kept[player])
    codes = np.asarray(quick(auto.encode)(first.params, first.variables, BATCH)["indices"])
    np.testing.assert_array_equal(quick(task.encode)(after.params, after.variables, BATCH)["indices"], codes)
    rows = quick(task.metrics)(after.params, after.variables, BATCH, jax.random.key(0))
    sums = {k: np.asarray(v, np.float64).sum(0) for k, v in rows.items()}
    summary = task.summary(sums, None, 8)
    empirical = sum(entropy(np.bincount(codes[..., c].reshape(-1), minlength=8), base=2) for c in range(2)) / 2
    assert summary["empirical_bits_per_code"] == pytest.approx(empirical, rel=1e-4) and summary["uniform_bits_per_code"] == pytest.approx(3.0)
    assert summary["bits_per_code"] == pytest.approx(float(np.mean(np.asarray(rows["loss"]))) / 32 / math.log(2), rel=1e-5)
    assert float(found["loss"]) < 32 * math.log(8)
    written = {"codes": codes, "label": BATCH["label"]}
    fields = {"codes": records.Field((4, 4, 2), "int32"), "label": SPEC.fields["label"]}
    other = tasks.get(config, records.Spec("codes", fields, {"train": 8}, "", {"image": [16, 16, 3]}))
    np.testing.assert_allclose(quick(other.metrics)(after.params, after.variables, written, None)["loss"], rows["loss"], rtol=1e-5)
    mask = np.zeros((8, 4, 4, 2), bool)
    mask[:, :2] = True
    request = {"temperature": np.ones(8, np.float32), "label": np.int32(BATCH["label"]), "codes": codes, "mask": mask}
    drawn = quick(task.sample)(after.params, after.variables, jax.random.key(1), request)
    np.testing.assert_array_equal(drawn["codes"][:, :2], codes[:, :2])
    np.testing.assert_allclose(drawn["image/mean"], quick(auto.decode)(first.params, first.variables, drawn["codes"])["image"], atol=1e-5)


def test_corruptions_against_numpy():
    x = np.random.default_rng(1).random((3, 16, 16, 3)).astype(np.float32)
    key = jax.random.key(0)
    np.testing.assert_allclose(corruptions.grey(key, x)[..., 1], x @ [0.299, 0.587, 0.114], atol=1e-6)
    spoilt = np.asarray(corruptions.patch(key, x))
    for before, after in zip(x, spoilt):
        changed = np.any(before != after, -1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed.sum() == 64 and len(rows) == len(columns) == 8 and rows[-1] - rows[0] == columns[-1] - columns[0] == 7
        np.testing.assert_allclose(after[changed], np.broadcast_to(before[~changed].mean(0), (64, 3)), atol=1e-5)
    assert 0.15 < np.std(np.asarray(corruptions.noise(key, np.full_like(x, 0.5))) - 0.5) < 0.25
    small = np.asarray(corruptions.low_resolution(key, x)).reshape(3, 4, 4, 4, 4, 3).mean((2, 4))
    assert np.mean((small - x.reshape(3, 4, 4, 4, 4, 3).mean((2, 4))) ** 2) < 0.002
    several = np.asarray(corruptions.corrupt(key, np.repeat(x[:1], 64, 0), ("grey", "noise")))
    grey = np.all(several[..., :1] == several, (1, 2, 3))
    assert 16 < grey.sum() < 48 and np.asarray(corruptions.corrupt(key, x, ())) is not None


@pytest.mark.parametrize("settings,message", [
    (dict(likelihood="mse"), "squared, categorical"), (dict(downs=5), "do not halve 5 times"), (dict(variance=0.0), "must be above 0"),
    (dict(corruptions=("blur",)), "'blur' is not known"), (dict(quantizer="fsq"), "grid"), (dict(condition="speaker"), "is not one of")])
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        made(**settings)
