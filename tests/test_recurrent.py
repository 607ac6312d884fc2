"""The LSTM layer: against one step after another by NumPy, its gradient against that of single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.layers.recurrent import Lstm

STEPS, BATCH, INPUTS, UNITS = 7, 3, 5, 4
LAYER = Lstm(UNITS)


@pytest.fixture(scope="module")
def given():
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (BATCH, STEPS, INPUTS))
    start = tuple(jax.random.normal(key, (BATCH, UNITS)) for key in keys[1:3])
    return LAYER.init(keys[3], x), x, start, jax.random.normal(keys[4], (BATCH, STEPS, UNITS))


def by_steps(params, x, start):
    carry, found = start, []
    for t in range(x.shape[1]):
        carry, h = LAYER.apply(params, carry, x[:, t], method=Lstm.step)
        found.append(h)
    return jnp.stack(found, 1)


def test_it_is_the_lstm_of_the_paper(given):
    params, x, (h, c), _ = given
    kernel, bias, recurrent = (np.asarray(p, np.float64) for p in (*(params["params"]["input"][k] for k in ("kernel", "bias")),
                                                                   params["params"]["recurrent"]))
    np.testing.assert_array_equal(bias, [0] * UNITS + [1] * UNITS + [0] * 2 * UNITS)  # the forget gate begins open
    h, c, expected = np.asarray(h, np.float64), np.asarray(c, np.float64), []
    for t in range(STEPS):
        i, f, g, o = np.split(np.asarray(x[:, t], np.float64) @ kernel + bias + h @ recurrent, 4, -1)
        i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        expected.append(h)
    np.testing.assert_allclose(LAYER.apply(params, x, given[2]), np.stack(expected, 1), atol=1e-6)


def test_its_gradient_is_that_of_its_steps(given):
    params, x, start, weights = given
    grads = [jax.grad(lambda *a: (fn(*a) * weights).sum(), (0, 1, 2))(params, x, start) for fn in (LAYER.apply, by_steps)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


def test_a_constant_input_is_the_same_input_at_every_step(given):
    params, x, _, weights = given
    zeros = (jnp.zeros((BATCH, UNITS)),) * 2
    constant = lambda params, z: LAYER.apply(params, z, STEPS, method=Lstm.constant)
    repeated = lambda params, z: by_steps(params, jnp.broadcast_to(z[:, None], (BATCH, STEPS, INPUTS)), zeros)
    np.testing.assert_allclose(constant(params, x[:, 0]), repeated(params, x[:, 0]), atol=1e-6)
    grads = [jax.grad(lambda *a: (fn(*a) * weights).sum(), (0, 1))(params, x[:, 0]) for fn in (constant, repeated)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


def test_one_step_and_bfloat16(given):
    params, x, start, _ = given
    np.testing.assert_allclose(LAYER.apply(params, x[:, :1], start), by_steps(params, x[:, :1], start), atol=1e-6)
    half = Lstm(UNITS, jnp.bfloat16)
    grads = jax.grad(lambda p: half.apply(p, x.astype(jnp.bfloat16)).astype(jnp.float32).sum())(params)
    full = jax.grad(lambda p: LAYER.apply(p, x).sum())(params)
    assert half.apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1), grads, full)
