"""RAVE: published sizes, its losses and stages, what each move may change, silence, and settings that do not fit."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import rave as experiment
from tests import toys
from vae_jax import mesh as meshes
from vae_jax import records, tasks
from vae_jax import train as trains
from vae_jax import update as updates
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.dsp import pqmf
from vae_jax.layers.streaming import Signal
from vae_jax.losses import spectral
from vae_jax.models import critics
from vae_jax.tasks import rave

RATE, HOP = 8000, 16
PLAIN = rave.augmentation.Augment(allpass=0.0, dither=False)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes most of the time here


def model(**changes):
    return rave.Model(**{**dict(capacity=2, latent=3, ratios=(2, 2), bands=4, noise_ratios=(2, 2), noise_hidden=3, amplitudes=3, windows=(64, 32),
                                critic_scales=1, critic_capacity=2, representation_steps=3, high_hz=1000.0, beta=0.05), **changes})


def config(folder="unused", **changes):
    return Config(task="rave", model=model(**changes), data=Data(dir=str(folder), crop=512, batch=4), optim=Optim(lr=1e-3, b1=0.5, b2=0.9),
                  eval=Eval(every=0, batch=4), run=Run(steps=8, log_every=1, save_every=100, compile_cache=""))


def spec(channels=1):
    fields = {"audio": records.Field((512, channels), "int16"), "valid": records.Field((), "int32")}
    return records.Spec("waves", fields, {"train": 8}, "", {"rate": RATE, "channels": channels})


def sounds(seed=0, n=4, channels=1):
    rng = np.random.default_rng(seed)
    time = np.arange(512) / RATE
    waves = np.sin(2 * np.pi * rng.uniform(100, 2000, (n, 1, channels)) * time[:, None]) * rng.uniform(0.1, 0.6, (n, 1, 1))
    return {"audio": np.int16(32767 * waves), "valid": np.full(n, 512, np.int32), "index": np.arange(n, dtype=np.int32)}


@pytest.fixture
def compiled_once(tmp_path):
    """The same program is compiled by one run and loaded by the next."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of 900 samples, as data_prep.waveforms writes them."""
    folder, rng = tmp_path_factory.mktemp("waves"), np.random.default_rng(5)
    fields = {"audio": records.Field((None, 1), "int16"), "valid": records.Field((), "int32")}
    with records.Writer(folder, "waves") as writer:
        for split, n in (("train", 6), ("test", 3)):
            for _ in range(n):
                wave = np.sin(np.arange(900) * rng.uniform(0.1, 1.0)) * 9000 + rng.normal(0, 100, 900)
                writer.add(split, records.encode(fields, {"audio": np.int16(wave)[:, None], "valid": 900}))
        writer.finish(fields, {}, {"rate": RATE, "channels": 1, "peak": 0.3, "reference_db": -10.0})
    return folder


@pytest.mark.parametrize("variant,encoder,decoder", [
    ("v1", 4_834_176, 12_769_472), ("v2", 16_046_592, 15_467_520), ("v2_small", 3_940_608, 3_810_816), ("raspberry", 426_720, 969_008),
    ("wasserstein", 14_940_672, 15_541_248), ("spherical", 14_940_672, 14_951_424)])
@pytest.mark.parametrize("causal", [False, True])
def test_published_sizes(variant, encoder, decoder, causal):
    m = experiment.get_config(variant).model
    m.causal = causal
    net, hop = rave.network(m, 1), m.bands * math.prod(m.ratios)
    made = jax.eval_shape(lambda key: net.init(key, Signal(jnp.zeros((1, hop // m.bands, m.bands))), m.latent, key), jax.random.key(0))
    counts = {player: sum(x.size for x in jax.tree.leaves(tree)) for player, tree in made["params"].items()}
    assert counts == {"encoder": encoder, "decoder": decoder}
    assert sum(counts.values()) == {"v1": 17_603_648, "v2": 31_514_112, "v2_small": 7_751_424, "raspberry": 1_395_728,
                                    "wasserstein": 30_481_920, "spherical": 29_892_096}[variant]


def by_hand(c, params, x):
    """(sub-bands of x, waves of sub-bands, their two distances from x) from the parts that tests of their own cover."""
    causal, late = c.model.causal, pqmf.bank(4, causal=c.model.causal).delay
    bands = pqmf.analyse(x, 4, causal=causal)

    def waves(y_bands):
        return pqmf.synthesise(y_bands, causal=causal)

    def distances(y_bands):
        rows = lambda b: b.swapaxes(1, 2).reshape(-1, b.shape[1])
        return (float(spectral.distance(x[:, :512 - late], waves(y_bands)[:, late:], windows=(64, 32)))
                + float(spectral.distance(rows(bands), rows(y_bands), windows=(64, 32))))

    return bands, waves, distances


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_of_stage_1_is_its_published_terms(causal):
    c = config(amplitudes=0, causal=causal, augment=PLAIN)
    task, batch = tasks.get(c, spec()), sounds()
    params, variables = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), batch)
    loss, (_, found) = jax.jit(task.moves["represent"].loss, compiler_options=QUICK)(params, variables, batch, jax.random.key(1), 0)
    bands, _, distances = by_hand(c, params, jnp.float32(batch["audio"][..., 0] / 32768))
    net = rave.network(c.model, 1)
    stored = {"params": {p: params[p] for p in ("encoder", "decoder")}, "batch_stats": {"encoder": variables["encoder"]}}
    statistics, _ = net.apply(stored, Signal(bands), True, method="encode", mutable=["batch_stats"])
    mean, scale = (np.asarray(a, np.float64) for a in np.split(np.asarray(statistics.x), 2, -1))
    scale = np.log1p(np.exp(scale)) + 1e-4
    kl = 0.5 * (mean**2 + scale**2 - 2 * np.log(scale) - 1).sum(-1).mean()
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    z = jnp.float32(mean) + jnp.float32(scale) * jax.random.normal(jax.random.split(jax.random.key(1), 4)[1], mean.shape)
    wanted = distances(net.apply(stored, Signal(z), method="decode").x)
    assert found["full_band"] + found["sub_bands"] == pytest.approx(wanted, rel=1e-3)
    assert loss == pytest.approx(wanted + 0.05 * kl, rel=1e-3)


def test_the_losses_of_stage_2_weigh_each_term_once_and_use_the_encoder_s_own_statistics():
    c = config(amplitudes=0, augment=PLAIN)
    task, batch, key = tasks.get(c, spec()), sounds(), jax.random.key(2)
    params, variables = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), batch)
    variables = {**variables, "encoder": jax.tree.map(lambda a: a + 0.5, variables["encoder"])}  # not what the batch would give
    x = jnp.float32(batch["audio"][..., 0] / 32768)
    bands, waves, distances = by_hand(c, params, x)
    net, critic = rave.network(c.model, 1), critics.Critics(1, (), (), 2)
    stored = {"params": {p: params[p] for p in ("encoder", "decoder")}, "batch_stats": {"encoder": variables["encoder"]}}
    mean, scale = rave.posterior("variational", net.apply(stored, Signal(bands), method="encode").x)
    z = mean + scale * jax.random.normal(jax.random.split(jax.random.split(key)[0])[1], mean.shape)
    y_bands = net.apply(stored, Signal(z), method="decode").x
    judge = lambda wave: critic.apply({"params": params["critic"]}, wave[..., None])
    (real, real_features), (fake, fake_features) = judge(x), judge(waves(y_bands))
    matching = np.mean([np.mean(np.abs(r - f)) for r, f in zip(real_features[0], fake_features[0])])
    loss, _ = jax.jit(task.moves["generate"].loss, compiler_options=QUICK)(params, variables, batch, key, 5)
    assert loss == pytest.approx(distances(y_bands) - 3.0 * float(jnp.mean(fake[0])) + 10.0 * matching, rel=1e-3)
    loss, _ = jax.jit(task.moves["criticise"].loss, compiler_options=QUICK)(params, variables, batch, key, 5)
    assert loss == pytest.approx(np.maximum(0, 1 - real[0]).mean() + np.maximum(0, 1 + fake[0]).mean(), rel=1e-4)


@pytest.mark.parametrize("changes", [dict(), dict(version=2, snake=True, critic_periods=(2, 3), matching="relative", adversarial="least_squares"),
                                     dict(latents="wasserstein", extra=2, causal=True, distance="frobenius"),
                                     dict(latents="spherical", bands=1, causal=True)])
def test_each_move_changes_its_own_players_alone(changes):
    c = config(**changes)
    task = tasks.get(c, spec(2))
    batch = sounds(channels=2)
    state = jax.jit(lambda b: updates.init_state(task, c, b), compiler_options=QUICK)(batch)
    update = jax.jit(lambda s, b, moves: updates.update(task, c, s, b, moves), static_argnums=2, compiler_options=QUICK)
    state, found = update(state, batch, ("represent",))
    assert bool(found["finite"]) and float(state.variables["decoder"]["noise"]) == 0.0
    for move, learning in (("represent", {"encoder", "decoder"}), ("generate", {"decoder"}), ("criticise", {"critic"})):
        after, found = update(state, batch, (move,))
        assert bool(found["finite"])
        changed = {p for p in state.params if any((a != b).any() for a, b in zip(jax.tree.leaves(state.params[p]), jax.tree.leaves(after.params[p])))}
        assert changed == learning
        if move != "represent":  # the encoder's statistics are as frozen as its weights
            for a, b in zip(jax.tree.leaves(state.variables["encoder"]), jax.tree.leaves(after.variables["encoder"])):
                np.testing.assert_array_equal(a, b)
        assert float(after.variables["decoder"]["noise"]) == (move == "generate")


def test_statistics_of_the_encoder_move_in_stage_1():
    c = config()
    task = tasks.get(c, spec())
    params, variables = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), sounds())
    _, (new, _) = jax.jit(task.moves["represent"].loss, compiler_options=QUICK)(params, variables, sounds(), jax.random.key(1), 0)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(variables["encoder"]), jax.tree.leaves(new["encoder"])))


@pytest.mark.parametrize("changes", [dict(), dict(version=2, latents="spherical", causal=True)])
def test_silence_gives_finite_gradients(changes):
    c = config(augment=PLAIN, **changes)
    task, batch = tasks.get(c, spec()), sounds()
    params, variables = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), batch)
    silent = batch | {"audio": np.zeros_like(batch["audio"])}
    for name, move in task.moves.items():
        own = {p: params[p] for p in move.players}
        loss = lambda own: move.loss({**params, **own}, variables, silent, jax.random.key(1), 0)[0]
        value, slope = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(own)
        assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(slope)), name
    found = jax.jit(task.metrics, compiler_options=QUICK)(params, variables, silent, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in found.values())


def test_four_devices_take_the_step_of_one():
    """Batch statistics, spectral ratios and draws are of the whole batch, wherever its rows lie."""
    c, made = config(), []
    task = tasks.get(c, spec())
    for mesh in (meshes.make(1), meshes.make(4)):
        batch = meshes.to_global(mesh, sounds())
        state = jax.jit(lambda b: updates.init_state(task, c, b), out_shardings=meshes.replicated(mesh), compiler_options=QUICK)(batch)
        update = jax.jit(lambda s, b: updates.update(task, c, s, b, ("represent",)), out_shardings=meshes.replicated(mesh), compiler_options=QUICK)
        made.append(jax.device_get(update(state, batch)))
    (one, first), (four, second) = made
    # Logarithms of magnitudes near 0 make the most of rounding
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4) and first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-2)
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(four.variables)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_causal_bank_is_not_asked_for_what_it_has_not_heard():
    """A decoder that gives back the sub-bands it was made from has no distance in the causal form either."""
    x = jnp.float32(sounds()["audio"][..., 0] / 32768)
    late = pqmf.bank(4, causal=True).delay
    y = pqmf.synthesise(pqmf.analyse(x, 4, causal=True), causal=True)
    found = spectral.of_clips(x[..., None], y[..., None], RATE, late, "squared", (64, 32), 1000.0)
    blind = spectral.of_clips(x[..., None], y[..., None], RATE, 0, "squared", (64, 32), 1000.0)
    assert found["distance"].max() < 0.1 < blind["distance"].min()


def test_exported_streams_are_built_once(monkeypatch):
    built, live = [], rave.live
    monkeypatch.setattr(rave, "live", lambda *given: built.append(given) or live(*given))
    task = tasks.get(config(), spec())
    (start, _), (step, _) = task.exports["start"], task.exports["step"]
    params, variables = jax.eval_shape(task.init, jax.random.key(0), sounds())
    x = {"audio": jax.ShapeDtypeStruct((2, 32, 1), jnp.float32)}
    state = jax.eval_shape(start, params, variables, x | {"key": jax.ShapeDtypeStruct((2,), jnp.uint32)})
    made = jax.eval_shape(step, params, variables, x | state)
    assert made["audio"].shape == (2, 32, 1) and jax.tree.map(jnp.shape, made["state"]) == jax.tree.map(jnp.shape, state["state"]) and len(built) == 1


def test_schedule_and_stages():
    task = tasks.get(config(representation_steps=3, critic_every=3), spec())
    assert [task.schedule(s)[0] for s in range(9)] == ["represent"] * 3 + ["criticise", "generate", "generate"] * 2
    assert [task.stage(s) for s in (0, 3, 4)] == ["representation", "representation", "adversarial"]


def test_a_rehearsal_changes_nothing_and_a_resumed_run_is_the_unbroken_one(folder, tmp_path, monkeypatch, compiled_once):
    whole = trains.train(config(folder), str(tmp_path / "whole"))
    short = config(folder)
    short.run.steps = 5
    trains.train(short, str(tmp_path / "broken"))
    monkeypatch.setattr(trains, "_rehearse", lambda *_: set())
    again = trains.train(config(folder), str(tmp_path / "broken"))
    assert whole == again and np.isfinite(list(whole.values())).all()
    files = [sorted((tmp_path / run / "metrics.jsonl").read_text().splitlines()[-2:]) for run in ("whole", "broken")]
    keep = lambda line: {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")}
    assert [keep(line) for line in files[0]] == [keep(line) for line in files[1]]


def test_a_later_stage_that_does_not_fit_fails_before_the_first_step(folder, tmp_path, monkeypatch):
    update = updates.update

    def tight(task, config, state, batch, moves):
        if "generate" in moves:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return update(task, config, state, batch, moves)

    monkeypatch.setattr(updates, "update", tight)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        trains.train(config(folder), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("field,value,words", [
    ("version", 3, "not one of 1, 2"), ("latents", "vq", "spherical"), ("ratios", (4, 4, 4, 4, 4), "one to four"), ("ratios", (1, 2), "one to four"),
    ("noise_ratios", (3,), "multiple"), ("amplitudes", 1, "at least 2"), ("distance", "paper", "frobenius"),
    ("windows", (4096,), "config.data.crop=512"), ("beta_steps", 10, "beta_from"), ("critic_every", 1, "at least 2"), ("capacity", 0, "at least 1"),
    ("windows", (), "at least one"), ("windows", (66, 32), "multiple of 4"), ("critic_scales", 0, "needs a critic"),
    ("critic_periods", (0,), "each at least 2"), ("noise_ratios", (), "at least one"), ("noise_hidden", 0, "at least 1"), ("extra", -1, "at least 0"),
    ("matching_weight", -1.0, "at least 0"), ("beta", math.nan, "at least 0")])
def test_settings_that_do_not_fit(field, value, words):
    with pytest.raises(UserError, match=words):
        tasks.get(config(**{field: value}), spec())


def test_a_crop_that_is_no_multiple_of_the_hop_and_data_without_sound_are_said(tmp_path):
    c = config()
    c.data.crop = 500
    with pytest.raises(UserError, match=f"multiple of the hop {HOP}"):
        tasks.get(c, spec())
    pictures = records.open_folder(toys.pictures(tmp_path / "pictures"))
    with pytest.raises(UserError, match="RAVE is for sound"):
        tasks.get(config(), pictures)
