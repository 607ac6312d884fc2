"""LSTM over rows, in the form that is fast in XLA: input products for all steps at once, only the recurrence in the loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class Lstm(nn.Module):
    """x [b, t, c] -> h [b, t, features] (Hochreiter & Schmidhuber 1997, with a forget gate whose bias starts at 1).

    Gates in the order input, forget, cell, output. `step` is the same cell for one row, for feeding back one's own output.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.input = nn.Dense(4 * self.features, dtype=self.dtype, bias_init=self._forget_bias)
        self.recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.features, 4 * self.features))

    def _forget_bias(self, key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[self.features : 2 * self.features].set(1.0)

    def start(self, batch: int):
        return jnp.zeros((batch, self.features), self.dtype), jnp.zeros((batch, self.features), self.dtype)

    def __call__(self, x_btc, start=None):
        """`start`: the carry (h, c), each [b, features], before the first step; None = zeros."""
        return self._run(jnp.swapaxes(self.input(x_btc), 0, 1), x_btc.shape[1], start)

    def constant(self, x_bc, steps: int):
        """The same of one input at every step: [b, c] -> [b, steps, features]. Its product is made once."""
        return self._run(self.input(x_bc)[None], steps, None)

    def _run(self, gates, steps, start):
        start = self.start(gates.shape[1]) if start is None else start
        return jnp.swapaxes(_states(gates, self.recurrent.astype(self.dtype), start, steps), 0, 1)

    def step(self, carry, x_bc):
        """One row: (carry, x [b, c]) -> (carry, h [b, features])."""
        carry = _cell(carry, self.input(x_bc), self.recurrent.astype(self.dtype))[0]
        return carry, carry[0]


def _cell(carry, gates, recurrent):
    """(h, c) after one step, and the gates as they opened [b, 4c]."""
    h, c = carry
    i, f, g, o = jnp.split(gates + h @ recurrent, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    return (o * jnp.tanh(c), c), jnp.concatenate([i, f, g, o], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _states(gates, recurrent, start, steps):
    """h [t, b, c] of every step. gates: what inputs add, [t, b, 4c], or [1, b, 4c] for all steps.

    Its gradient is by hand for one reason: that of `recurrent`, which a scan sums up step by step, is a single product over all steps."""
    return _forward(gates, recurrent, start, steps)[0]


def _forward(gates, recurrent, start, steps):
    def body(carry, x):
        carry, opened = _cell(carry, gates[0] if x is None else x, recurrent)
        return carry, (*carry, opened)

    _, (h, c, opened) = jax.lax.scan(body, start, gates if len(gates) == steps else None, steps, unroll=4)
    return h, (h, c, opened, recurrent, start, len(gates))


def _backward(steps, found, dh_tbc):
    h, c, opened, recurrent, start, inputs = found
    before = [jnp.concatenate([first[None], x[:-1]]) for first, x in zip(start, (h, c))]

    def body(carry, x):
        (dh, dc), (dh_t, opened, c, c_before) = carry, x
        i, f, g, o = jnp.split(opened, 4, -1)
        dh, tanh = dh + dh_t, jnp.tanh(c)
        dc = dc + dh * o * (1 - tanh**2)
        dgates = jnp.concatenate([dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)], -1)
        return (dgates @ recurrent.T, dc * f), dgates

    dstart, dgates = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, start), (dh_tbc, opened, c, before[1]), reverse=True, unroll=4)
    return dgates if inputs == steps else dgates.sum(0, keepdims=True), jnp.einsum("tbc,tbg->cg", before[0], dgates), dstart


_states.defvjp(_forward, _backward)
