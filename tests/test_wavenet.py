"""WaveNet: causal, of the stated receptive field, equal to plain loops in NumPy; played with rings it gives what the full pass gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from vae_jax.config import UserError
from vae_jax.losses import discretized
from vae_jax.models import wavenet

SMALL = dict(classes=23, dilations=(1, 2, 4, 1, 3), residual=8, gate=6, skip=20)
STEPS = 30


@functools.cache
def made(batch=3, conditions="both", **settings):
    """A small net with random parameters (biases too), sequences, conditions, and the compiled full pass."""
    net = wavenet.WaveNet(**{**SMALL, **settings})
    rng = np.random.default_rng(0)
    x = jnp.int32(rng.integers(0, net.classes, (batch, STEPS)))
    condition = jnp.float32(rng.normal(size=(batch, 5))) if conditions in ("both", "global") else None
    local = jnp.float32(rng.normal(size=(batch, STEPS, 4))) if conditions in ("both", "local") else None
    shapes = jax.eval_shape(net.init, jax.random.key(1), x, condition, local)
    params = jax.tree.map(lambda v: jnp.float32(rng.normal(0, 0.4, v.shape)), shapes)
    return net, params, x, condition, local, jax.jit(net.apply)


def in_numpy(net, params, x, condition, local):
    """The definition, position by position, for one sequence: nothing but the paper's figure 4 and zeros before the beginning."""
    p = jax.tree.map(np.float64, params["params"])
    h = np.zeros((len(net.dilations) + 1, len(x), net.residual))
    outputs = []
    for t in range(len(x)):
        if t:
            h[0, t] = p["entry"][0] * (2 * x[t - 1] / (net.classes - 1) - 1) if net.components else p["entry"][x[t - 1]]
        skip = p["skip_bias"].copy()
        for i, dilation in enumerate(net.dilations):
            g = p["gate_bias"][i] + condition @ p["condition"][:, i] + local[t] @ p["local"][:, i]
            for tap in range(net.kernel):
                back = t - (net.kernel - 1 - tap) * dilation
                g = g + (h[i, back] @ p["gate"][i, tap] if back >= 0 else 0)
            z = np.tanh(g[:net.gate]) * special.expit(g[net.gate:])
            skip += z @ p["skip"][i * net.gate:(i + 1) * net.gate]
            if i < len(net.dilations) - 1:
                h[i + 1, t] = h[i, t] + z @ p["residual"][i]
        y = np.maximum(skip, 0) @ p["head"] + p["head_bias"]
        outputs.append(np.maximum(y, 0) @ p["out"] + p["out_bias"])
    return np.stack(outputs)


@pytest.mark.parametrize("settings", [{}, {"components": 2, "classes": 65536, "kernel": 3}])
def test_full_pass_is_the_definition(settings):
    net, params, x, condition, local, full = made(**settings)
    expected = np.stack([in_numpy(net, params, *rows) for rows in zip(*map(np.asarray, (x, condition, local)))])
    ours = full(params, x, condition, local)
    assert ours.dtype == jnp.float32 and expected.std() > 0.1
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("kernel, dilations", [(2, (1, 2, 4)), (3, (1, 3)), (2, (1, 5, 2, 1))])
def test_a_position_sees_those_of_its_receptive_field_and_no_others(kernel, dilations):
    net, params, x, _, _, full = made(batch=1, conditions="", kernel=kernel, dilations=dilations)
    reach = wavenet.receptive_field(net)
    assert reach == 1 + (kernel - 1) * sum(dilations) and reach < STEPS - 6
    for at in (0, 5):
        changed = np.asarray(full(params, x, None, None) != full(params, x.at[0, at].add(1) % net.classes, None, None)).any((0, 2))
        assert not changed[:at + 1].any() and not changed[at + 1 + reach:].any()
        assert changed[at + 1] and changed[at + reach] and changed[at + 1:at + 1 + reach].mean() > 0.5


def test_local_conditions_reach_their_own_position_and_global_ones_all():
    net, params, x, condition, local, full = made()
    base = full(params, x, condition, local)
    changed = np.asarray(base != full(params, x, condition, local.at[1, 7].add(1.0)))
    assert not changed[[0, 2]].any() and not changed[1, :7].any() and changed[1, 7].all()
    changed = np.asarray(base != full(params, x, condition.at[2].add(1.0), local))
    assert not changed[:2].any() and changed[2].all(-1).all()


@pytest.mark.parametrize("settings", [
    {}, {"conditions": ""}, {"conditions": "global"}, {"conditions": "local"}, {"batch": 1}, {"kernel": 3}, {"dilations": (2,)},
    {"components": 2, "classes": 256, "batch": 1}])
def test_steps_give_what_the_full_pass_gives(settings):
    net, params, x, condition, local, full = made(**settings)
    weights, state = wavenet.prepare(net, params, len(x), condition), wavenet.start(net, len(x))
    step, stepped = jax.jit(functools.partial(wavenet.step, net)), []
    for t in range(STEPS):
        before = x[:, t - 1] if t else jnp.full(len(x), 9)  # of no consequence at the first position
        state, outputs = step(weights, state, before, None if local is None else local[:, t])
        stepped.append(outputs)
    np.testing.assert_allclose(np.stack(stepped, 1), full(params, x, condition, local), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_generation_at_temperature_zero_is_greedy_by_full_passes(batch):
    net, params, _, condition, local, full = made(batch=batch)
    drawn = wavenet.generate(net, params, jax.random.key(2), (batch, STEPS), condition, local, temperature=0.0)
    greedy = jnp.zeros((batch, STEPS), jnp.int32)
    for t in range(STEPS):
        greedy = greedy.at[:, t].set(jnp.argmax(full(params, greedy, condition, local)[:, t], -1))
    assert drawn.dtype == jnp.int32 and len(np.unique(greedy)) > 3
    np.testing.assert_array_equal(drawn, greedy)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_coarse_local_condition_is_that_one_with_its_rows_repeated(batch):
    net, params, x, condition, local, full = made(batch=batch)
    coarse = local[:, ::6]
    repeated = jnp.repeat(coarse, 6, 1)
    np.testing.assert_allclose(full(params, x, condition, coarse), full(params, x, condition, repeated), atol=1e-5)
    drawn = [wavenet.generate(net, params, jax.random.key(2), (batch, STEPS), condition, rows) for rows in (coarse, repeated)]
    np.testing.assert_array_equal(*drawn)
    slope = lambda rows: jax.grad(lambda rows: full(params, x, condition, rows).sum())(rows)
    np.testing.assert_allclose(slope(coarse), slope(repeated).reshape(batch, 5, 6, 4).sum(2), rtol=1e-4, atol=1e-3)
    for call in (full, lambda *given: wavenet.generate(net, params, jax.random.key(2), (batch, STEPS), *given[2:])):
        with pytest.raises(UserError, match="7 rows for 30 positions"):
            call(params, x, condition, local[:, :7])


def test_draws_follow_the_nets_probabilities_and_top_k_never_leaves_them():
    net, params, _, _, _, full = made(batch=1, conditions="")
    params = {"params": {**params["params"], "out": params["params"]["out"] * 0.5}}
    drawn = wavenet.generate(net, params, jax.random.key(3), (6000, 3))
    logits = np.asarray(full(params, drawn, None, None))
    first = special.softmax(np.float64(logits[0, 0]))
    assert stats.chisquare(np.bincount(drawn[:, 0], minlength=23), first * 6000).pvalue > 0.01
    common = np.argmax(np.bincount(drawn[:, 0]))
    after = drawn[drawn[:, 0] == common, 1]
    expected = special.softmax(np.float64(logits[drawn[:, 0] == common][0, 1])) * len(after)
    assert stats.chisquare(np.bincount(after, minlength=23), expected).pvalue > 0.01

    drawn = wavenet.generate(net, params, jax.random.key(3), (500, STEPS), temperature=jnp.linspace(0.5, 3.0, 500), top_k=4)
    logits = np.asarray(full(params, drawn, None, None))
    rank = (logits > np.take_along_axis(logits, np.asarray(drawn)[..., None], -1)).sum(-1)
    assert rank.max() == 3  # all four are drawn, and no other; a near tie would show a fifth


def test_given_positions_are_kept_and_the_others_fit_them():
    net, params, x, condition, local, full = made()
    generate = functools.partial(wavenet.generate, net, params, jax.random.key(4), x.shape, condition, local, 0.0)
    mask = jnp.zeros(x.shape, bool).at[:, :10].set(True).at[1, 15:20].set(True)
    filled = generate(x_bt=x, mask_bt=mask)
    np.testing.assert_array_equal(filled[mask], x[mask])
    greedy = jnp.argmax(full(params, filled, condition, local), -1)
    np.testing.assert_array_equal(filled[~mask], greedy[~mask])
    assert np.any(filled[1, 20:] != generate(x_bt=x, mask_bt=mask.at[1, 10:].set(False))[1, 20:])


def test_generation_of_waves_draws_from_the_mixture():
    net, params, x, _, _, full = made(conditions="", components=2, classes=65536)
    narrow = params["params"]["out_bias"].at[2:].add(jnp.array([0.0, 0.0, -4.0, -4.0]))
    params = {"params": {**params["params"], "out_bias": narrow}}
    drawn = np.asarray(wavenet.generate(net, params, jax.random.key(5), (4000, 1))[:, 0])
    assert drawn.min() >= 0 and drawn.max() <= 65535 and len(np.unique(drawn)) > 2500
    first = jnp.broadcast_to(full(params, x, None, None)[0, 0], (65536, 6))
    cumulative = np.cumsum(np.exp(np.float64(discretized.logistic_log_prob(first, jnp.arange(65536), 65536))))
    assert stats.kstest(drawn, lambda level: cumulative[np.int64(level)]).pvalue > 0.01


def test_a_net_learns_what_it_can_see():
    """The next class is the one 6 positions back plus the condition: ln 23 before, close to nothing after; without sight of it nothing is gained."""
    net = wavenet.WaveNet(**{**SMALL, "residual": 16, "gate": 16, "dilations": (1, 2, 3)})
    rng = np.random.default_rng(0)
    shift = rng.integers(0, 3, 16)
    x = rng.integers(0, 23, (16, 40))
    for t in range(6, 40):
        x[:, t] = (x[:, t - 6] + shift) % 23
    x, condition = jnp.int32(x), jax.nn.one_hot(shift, 3)
    params = jax.jit(net.init)(jax.random.key(6), x, condition)
    loss = lambda p: -discretized.softmax_log_prob(net.apply(p, x, condition), x)[:, 6:].mean()
    optimiser = optax.adam(1e-2)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(100):
        params, state, value = update(params, state)
        values.append(float(value))
    assert abs(values[0] - np.log(23)) < 0.7 and values[-1] < 0.3


def test_what_does_not_fit_is_refused():
    net, params, x, condition, local, _ = made()
    with pytest.raises(UserError, match="with a global condition"):
        net.apply(params, x, None, local)
    with pytest.raises(UserError, match="with a local condition"):
        wavenet.generate(net, params, jax.random.key(0), x.shape, condition)
    plain, params, *_ = made(conditions="")
    with pytest.raises(UserError, match="without a global condition"):
        wavenet.prepare(plain, params, 3, condition)
    with pytest.raises(UserError, match="kernel"):
        wavenet.WaveNet(**{**SMALL, "kernel": 1}).init(jax.random.key(0), x)
    with pytest.raises(UserError, match="both or neither"):
        wavenet.generate(plain, params, jax.random.key(0), x.shape, x_bt=x)
    waves, params, *_ = made(conditions="", components=2, classes=65536)
    with pytest.raises(UserError, match="top_k"):
        wavenet.generate(waves, params, jax.random.key(0), (1, 4), top_k=3)
