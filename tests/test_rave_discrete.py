"""RAVE with discrete latents: published sizes, what each stage moves, codes of whole sounds, streams and files, draws, figures of an epoch."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rave import PLAIN, QUICK, config, sounds, spec

from experiments import rave as experiment
from vae_jax import analysis, recordings, tasks
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import UserError
from vae_jax.dsp import pqmf
from vae_jax.latents import fidelity
from vae_jax.layers.streaming import Signal
from vae_jax.tasks import rave
from vae_jax.verbs import decode

CODES, LEVELS, HOP = 8, 2, 16
DISCRETE = dict(latents="discrete", codes=CODES, levels=LEVELS, kmeans=2, restart=0.0, causal=True, amplitudes=0, beta=0.3, augment=PLAIN)
jit = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def begun():
    """(config, task, its update, a state behind one step of stage 1)"""
    c = config(**DISCRETE)
    task = tasks.get(c, spec())
    update = jit(lambda s, b, moves: updates.update(task, c, s, b, moves), static_argnums=2)
    state, found = update(jit(lambda b: updates.init_state(task, c, b))(sounds()), sounds(), ("represent",))
    return c, task, update, state, found


@functools.cache
def heard(seed=0):
    """`encode` of a batch."""
    _, task, _, state, _ = begun()
    return jax.device_get(jit(task.encode)(state.params, state.variables, sounds(seed)))


def changed(before, after):
    return {p for p in before if any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(jax.tree.leaves(before[p]), jax.tree.leaves(after[p])))}


def test_published_sizes():
    m = experiment.get_config("discrete").model
    net = rave.network(m, 1)
    made = jax.eval_shape(lambda key: net.init(key, Signal(jnp.zeros((1, 64, 16))), m.latent, key), jax.random.key(0))
    counts = {player: sum(x.size for x in jax.tree.leaves(tree)) for player, tree in made["params"].items()}
    assert counts["encoder"] + counts["decoder"] == 29_154_816 and m.bands * math.prod(m.ratios) == 1024
    assert rave.quantizer(m)[:5] == ("ema", 1024, 128, 1, 16)


@pytest.mark.parametrize("latents", ["variational", "wasserstein", "spherical"])
def test_other_latents_have_no_quantiser(latents):
    """So that a run of before opens as it did."""
    task = tasks.get(config(latents=latents), spec())
    params, variables = jax.eval_shape(task.init, jax.random.key(0), sounds())
    assert set(params) == {"encoder", "decoder", "critic"} and set(variables) == {"encoder", "decoder"}
    assert task.moves["represent"].players == ("encoder", "decoder") and "codes" not in task.exports


def test_stage_2_leaves_encoder_and_codebooks_as_they_are():
    _, task, update, state, _ = begun()
    for move, learning, moving in (("represent", {"encoder", "decoder"}, {"encoder", "quantizer"}), ("generate", {"decoder"}, {"decoder"})):
        after, found = update(state, sounds(1), (move,))
        assert bool(found["finite"]) and changed(state.params, after.params) == learning
        assert changed(state.variables, after.variables) == moving
    assert task.moves["criticise"].players == ("critic",)


def test_the_loss_is_the_distances_and_the_commitment_and_averages_move_the_codebooks():
    c, _, update, state, _ = begun()
    after, found = update(state, sounds(2), ("represent",))
    assert found["loss"] == pytest.approx(float(found["sub_bands"] + found["full_band"] + 0.3 * found["commitment"]), rel=1e-5)
    net, stored = rave.network(c.model, 1), rave.streaming.stored(state.params, state.variables)
    bands = Signal(pqmf.analyse(jnp.float32(sounds(2)["audio"][..., 0]) / 32768, 4, causal=True))
    z = jit(lambda bands: net.apply(stored, bands, True, method="encode", mutable=["batch_stats"])[0].x)(bands)
    rest, old = np.asarray(z, np.float64).reshape(-1, 3), {k: np.asarray(v, np.float64) for k, v in state.variables["quantizer"].items()}
    commitment, perplexity = 0.0, []
    for level in range(LEVELS):
        nearest = ((rest[:, None] - old["codebook"][level, 0]) ** 2).sum(-1).argmin(1)
        tally = {"count": np.bincount(nearest, minlength=CODES), "sum": np.zeros((CODES, 3))}
        np.add.at(tally["sum"], nearest, rest)
        for name, value in tally.items():
            wanted = 0.99 * old[name][level, 0] + 0.01 * value
            np.testing.assert_allclose(after.variables["quantizer"][name][level, 0], wanted, rtol=1e-4, atol=1e-5)
        rest = rest - old["codebook"][level, 0][nearest]
        commitment += (rest**2).mean()
        share = tally["count"][tally["count"] > 0] / len(nearest)
        perplexity.append(np.exp(-(share * np.log(share)).sum()))
    assert found["commitment"] == pytest.approx(commitment, rel=1e-4) and found["perplexity"] == pytest.approx(np.mean(perplexity), rel=1e-4)


def test_silence_gives_finite_gradients():
    _, _, update, state, _ = begun()
    _, found = update(state, sounds() | {"audio": np.zeros_like(sounds()["audio"])}, ("represent",))
    assert bool(found["finite"]) and np.isfinite(found["grad_norm"])


def test_four_devices_learn_the_codebooks_of_one():
    """k-means and averages are of the whole batch, wherever its rows lie."""
    c, task, _, one, first = begun()
    mesh = meshes.make(4)
    whole, batch = meshes.replicated(mesh), meshes.to_global(mesh, sounds())
    state = jit(lambda b: updates.init_state(task, c, b), out_shardings=whole)(batch)
    four, second = jit(lambda s, b: updates.update(task, c, s, b, ("represent",)), out_shardings=whole)(state, batch)
    assert first["commitment"] == pytest.approx(float(second["commitment"]), rel=1e-3) and first["perplexity"] == pytest.approx(
        float(second["perplexity"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(one.variables["quantizer"]), jax.tree.leaves(four.variables["quantizer"])):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_means_are_the_sums_of_the_codes():
    _, _, _, state, _ = begun()
    code, books = heard(), np.asarray(state.variables["quantizer"]["codebook"])[:, 0]
    assert code["indices"].dtype == np.int32 and code["indices"].shape == (4, 32, LEVELS) and code["mean"].shape == (4, 32, 3)
    np.testing.assert_array_equal(code["mean"], books[0][code["indices"][..., 0]] + books[1][code["indices"][..., 1]])


def test_a_stream_is_the_model_on_the_whole_sound_and_chooses_its_codes():
    c, task, _, state, _ = begun()
    live, variables = rave.live(c, spec()), {**state.variables, "decoder": {"noise": jnp.float32(0.0)}}
    x = jnp.float32(sounds()["audio"]) / 32768
    whole = jit(task.decode)(state.params, variables, heard()["mean"])["audio"]
    step, at, parts = jit(live.model.step), live.model.start(4), []
    for block in jnp.split(x, 8, 1):
        at, y = step(state.params, variables, at, block)
        parts.append(y)
    apart = np.asarray(whole, np.float64) - np.concatenate(parts, 1)
    assert live.model.delay == 0 and np.std(whole) > 0 and 10 * np.log10(np.sum(np.square(whole)) / (np.sum(apart**2) + 1e-30)) > 100
    step, at, parts = jit(live.encode.step), live.encode.start(4), []
    for block in jnp.split(x, 8, 1):
        at, z = step(state.params, variables, at, block)
        parts.append(z)
    np.testing.assert_array_equal(np.concatenate(parts, 1), heard()["mean"])  # sums of the same codes in the same order


def test_figures_of_an_epoch_leave_out_what_is_behind_the_sound():
    c, task, _, state, _ = begun()
    batch = sounds() | {"valid": np.array([512, 512, 33, 1], np.int32)}
    rows = jax.device_get(jit(task.metrics)(state.params, state.variables, batch, jax.random.key(0)))
    indices = np.concatenate([clip[:n] for clip, n in zip(heard()["indices"], (32, 32, 3, 1))])
    counts = np.stack([np.bincount(indices[:, level], minlength=CODES) for level in range(LEVELS)])
    np.testing.assert_array_equal(rows["counts"].sum(0), counts)
    sums, squares = ({name: (value.astype(np.float64) ** power).sum(0) for name, value in rows.items()} for power in (1, 2))
    found = task.summary(sums, squares, 4)
    share = counts / len(indices)
    bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    for level in range(LEVELS):
        assert found[f"perplexity_{level + 1}"] == pytest.approx(2 ** bits[level], rel=1e-5)
        assert found[f"usage_{level + 1}"] == pytest.approx((counts[level] > 0).mean())
    assert found["perplexity"] == pytest.approx((2**bits).mean(), rel=1e-5) and found["uniform_bits_per_second"] == LEVELS * 3 * 8000 / HOP
    assert found["empirical_bits_per_second"] == pytest.approx(bits.sum() * 8000 / HOP, rel=1e-5)
    assert "500 a second, of 2 codes, 3 kbit a second" in task.about()


def run_of():
    c, task, _, state, _ = begun()
    return types.SimpleNamespace(config=c, task=task, params=state.params, variables=state.variables, spec=spec(), mesh=meshes.make(1), step=1)


def test_new_frames_are_codes():
    """Without an analysis drawn as often as in training, at a low temperature the commonest; with one those that lie nearest."""
    run, m = run_of(), config(**DISCRETE).model
    count = jnp.float32([[3, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 2, 2, 0, 0]])[:, None]
    codebooks = run.variables["quantizer"] | {"count": count}
    draw = jit(lambda temperature: rave.draw_codes(m, codebooks, jax.random.key(0), 4000, temperature))
    drawn = np.asarray(draw(jnp.array([1.0, 0.0])))
    book = np.asarray(codebooks["codebook"])[:, 0]
    sums = {(i, j): book[0, i] + book[1, j] for i in (0, 2) for j in (4, 5)}
    share = {pair: np.mean((drawn[0] == value).all(-1)) for pair, value in sums.items()}
    assert sum(share.values()) == 1
    assert {pair: round(value, 1) for pair, value in share.items()} == {(0, 4): 0.4, (0, 5): 0.4, (2, 4): 0.1, (2, 5): 0.1}
    assert all((drawn[1] == sums[0, j]).all(-1).any() for j in (4, 5)) and not (drawn[1] == sums[2, 4]).all(-1).any()
    made = jit(run.task.sample)(run.params, run.variables, jax.random.key(0), {"temperature": jnp.ones(2)})["audio/mean"]
    assert made.shape == (2, 512, 1) and np.isfinite(made).all()
    every = (book[0][:, None] + book[1]).reshape(-1, 3)
    found = fidelity.fit(heard()["mean"])
    np.testing.assert_array_equal(analysis.unused(run, found), analysis.deviations(found))
    for given in (found, None):
        z = analysis.draw(run, given, 2, 20, 1.0, (0, 1))
        assert z.shape == (20, 3) and all((every == frame).all(1).any() for frame in z)
        np.testing.assert_array_equal(z, analysis.draw(run, given, 2, 20, 1.0, (0, 1)))


def test_codes_of_a_long_sound_are_those_of_one_pass_and_stand_in_its_file(monkeypatch, tmp_path):
    """The quantiser gives no finite number for what is not finite, by which it is told how far the model looks."""
    monkeypatch.setattr(recordings, "PROBE", 96)
    monkeypatch.setattr(recordings, "SECONDS", 0)
    run, seen = run_of(), []
    looks = recordings._looks
    monkeypatch.setattr(recordings, "_looks", lambda *given: seen.append(looks(*given)) or seen[-1])
    through, wave = recordings.through(run), np.float32(sounds(0, 8)["audio"]).reshape(-1, 1)[:250 * HOP - 5] / 32768
    latents, indices = through.encode(wave), through.indices(wave)
    assert len(seen) == 2 and seen[0] == seen[1] and seen[0][0] > 0 and indices.dtype == np.int32
    padded = np.pad(wave, ((0, len(indices) * HOP - len(wave)), (0, 0)))
    code = jit(run.task.encode)(run.params, run.variables, {"audio": padded[None]})
    np.testing.assert_array_equal(indices, code["indices"][0])
    np.testing.assert_array_equal(latents, code["mean"][0])
    np.savez(tmp_path / "long.npz", **recordings.stored(run, through, latents, len(wave)), indices=indices)
    np.testing.assert_array_equal(decode._read(str(tmp_path / "long.npz"))[0], latents)


def test_exported_codes_stand_for_the_exported_latents():
    c, task, _, state, _ = begun()
    (codes, inputs), (lookup, _), (encode, _) = (task.exports[name] for name in ("codes", "lookup", "encode"))
    shape = jax.export.symbolic_shape(inputs["audio"][0])
    made = jax.export.export(jit(codes))(*jax.eval_shape(lambda: (state.params, state.variables)),
                                         {"audio": jax.ShapeDtypeStruct(shape, jnp.float32)})
    x = {"audio": jnp.float32(sounds()["audio"]) / 32768}
    indices = made.call(state.params, state.variables, x)
    np.testing.assert_array_equal(indices["indices"], heard()["indices"])
    np.testing.assert_array_equal(lookup(state.params, state.variables, indices)["z"], heard()["mean"])


@pytest.mark.parametrize("field,value,words", [
    ("codes", 1, "config.model.codes=1 is too small"), ("levels", 0, "config.model.levels=0"), ("restart", -1.0, "config.model.restart=-1.0"),
    ("kmeans", -1, "config.model.kmeans=-1"), ("decay", 1.0, r"decay must be in \[0, 1\)"),
    ("epsilon", 0.0, "config.model.epsilon=0.0 must be above 0")])
def test_settings_that_do_not_fit(field, value, words):
    with pytest.raises(UserError, match=words):
        tasks.get(config(**DISCRETE | {field: value}), spec())
