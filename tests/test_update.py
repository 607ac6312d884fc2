"""The pure update: moves, gates, accumulation, schedules, averaging, and the first bad step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from vae_jax import mesh as meshes
from vae_jax import optim as optims
from vae_jax import update as updates
from vae_jax.config import Optim


def run(task, config, steps, batches=None):
    mesh = meshes.make(1)
    update = updates.make_update(task, config, mesh)
    state, states, metrics = jax.device_put(updates.init_state(task, config, toys.batch()), meshes.replicated(mesh)), [], []
    for step in range(steps):
        states.append(jax.device_get(state.params) | {"variables": jax.device_get(state.variables), "opt": jax.device_get(state.opt)})
        state, found = update(state, toys.batch(step) if batches is None else batches[step], task.schedule(step))
        metrics.append(jax.device_get(found))
    return state, states, metrics, update


def test_a_move_writes_only_its_own_players():
    state, states, _, _ = run(toys.two_players(every=3), toys.config(), 4)
    for step in range(1, 4):
        changed = not np.array_equal(states[step]["dis"]["bias"], states[step - 1]["dis"]["bias"])
        assert changed == (step == 1), "dis is updated at steps 0 and 3 only"
        assert not np.array_equal(states[step]["gen"]["kernel"], states[step - 1]["gen"]["kernel"])
    np.testing.assert_array_equal(state.params["frozen"]["bias"], np.ones(2))
    assert {p: float(v["count"]) for p, v in state.variables.items()} == {"gen": 4.0, "dis": 2.0, "frozen": 0.0}
    assert set(state.opt) == {"gen", "dis"}, "a player in no move has no optimizer state"


def test_moves_of_a_step_start_from_the_same_params():
    """dis's gradient must see gen as it was before gen's own update."""
    task, config = toys.two_players(every=1), toys.config(name="sgd", b1=0.0)
    state = updates.init_state(task, config, toys.batch())
    key = jax.random.fold_in(state.key, 0)
    grads = {m: jax.grad(lambda p, m=m: task.moves[m].loss({**state.params, m: p}, state.variables, toys.batch(), key, 0)[0])(state.params[m])
             for m in ("gen", "dis")}
    after, _ = updates.update(task, config, state, toys.batch(), ("gen", "dis"))
    for player in ("gen", "dis"):
        jax.tree.map(lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-6, atol=1e-7),
                     after.params[player], state.params[player], grads[player])


def test_a_gated_player_keeps_params_optimizer_and_variables():
    gate = lambda metrics: {"gen": metrics["gen_loss"] < 0}
    state, states, _, _ = run(toys.two_players(gate), toys.config(), 2)
    np.testing.assert_array_equal(state.params["gen"]["kernel"], states[0]["gen"]["kernel"])
    assert float(state.variables["gen"]["count"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt["gen"]), states[0]["opt"]["gen"])
    assert not np.array_equal(state.params["dis"]["bias"], states[0]["dis"]["bias"])


def test_one_compilation_a_distinct_tuple():
    _, _, _, update = run(toys.two_players(every=2), toys.config(), 7)
    assert update._cache_size() == 2


def test_accumulation_equals_the_whole_batch():
    plain = run(toys.two_players(every=1000), toys.config(), 3)[0]
    parts = run(toys.two_players(every=1000), toys.config(accumulate=4), 3)[0]
    np.testing.assert_allclose(parts.params["gen"]["kernel"], plain.params["gen"]["kernel"], rtol=1e-5)


def test_the_first_bad_step_and_its_terms_are_kept():
    bad = {"x": toys.batch()["x"].at[0, 0].set(jnp.nan)}
    state, _, metrics, _ = run(toys.two_players(every=1000), toys.config(), 4, [toys.batch(0), toys.batch(1), bad, toys.batch(3)])
    assert int(state.bad_step) == 2 and [bool(m["finite"]) for m in metrics] == [True, True, False, False]
    assert updates.bad_terms(state.bad_terms, metrics[2]) == ["gen_loss", "grad_norm", "loss"]


def test_ema_follows_the_named_players():
    config = toys.config(ema=0.5, ema_players=("gen",))
    task = toys.two_players()
    state, expected = updates.init_state(task, config, toys.batch()), None
    for step in range(12):  # of each average the newest step is 0.9, 9 / 11, 9 / 12 ... and from the ninth on one half
        expected = np.asarray(state.params["gen"]["kernel"]) if step == 0 else expected
        state, _ = updates.update(task, config, state, toys.batch(step), ("gen",))
        newest = max(0.5, 9 / (10 + step))
        expected = (1 - newest) * expected + newest * np.asarray(state.params["gen"]["kernel"])
    assert set(state.ema) == {"gen"}
    np.testing.assert_allclose(state.ema["gen"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(updates.eval_params(state)["gen"]["kernel"], state.ema["gen"]["kernel"])


def test_clipping_is_by_the_global_norm():
    grads = {"gen": {"kernel": jnp.full((2, 2), 3.0)}, "dis": {"bias": jnp.full(2, 4.0)}}
    clipped, norm = updates._clip(toys.two_players(), toys.config(clip=1.0), grads)
    assert float(norm) == pytest.approx(np.sqrt(4 * 9 + 2 * 16))
    assert float(optax.tree.norm(clipped)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("optim", [
    Optim(lr=0.3), Optim(lr=0.3, schedule="cosine", warmup_steps=10), Optim(lr=0.3, schedule="exponential", factor=0.5, decay_steps=20),
    Optim(lr=0.3, schedule="step", boundaries=(5, 12), factor=0.1), Optim(lr=0.3, schedule="linear", factor=0.2, decay_steps=20)])
def test_learning_rate_on_host_and_device_agree_with_optax(optim):
    reference = {
        "constant": lambda: optax.constant_schedule(0.3), "cosine": lambda: optax.cosine_decay_schedule(0.3, 30),
        "exponential": lambda: optax.exponential_decay(0.3, 20, 0.5), "linear": lambda: optax.linear_schedule(0.3, 0.06, 20),
        "step": lambda: optax.piecewise_constant_schedule(0.3, {5: 0.1, 12: 0.1})}
    for step in (0, 4, 5, 6, 12, 13, 39, 60):
        device = float(jax.jit(lambda s: optims.learning_rate(optim, 40, s))(step))
        assert device == pytest.approx(float(optims.learning_rate(optim, 40, step, np)), rel=1e-5)
        if step >= optim.warmup_steps:
            assert device == pytest.approx(float(reference[optim.schedule]()(step - optim.warmup_steps)), rel=1e-5)
    if optim.warmup_steps:
        assert float(optims.learning_rate(optim, 40, 4, np)) == pytest.approx(0.15)


def test_weight_decay_spares_all_but_kernels():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones((2, 2))}
    direction, _ = optims.transform(Optim(weight_decay=0.1)).update(
        jax.tree.map(jnp.zeros_like, params), optims.transform(Optim(weight_decay=0.1)).init(params), params)
    assert {k: float(v.max()) for k, v in direction.items()} == pytest.approx({"kernel": 0.1, "bias": 0.0, "scale": 0.0})
