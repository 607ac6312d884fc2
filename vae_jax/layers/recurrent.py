"""LSTM over rows, in the form that is fast in XLA: input products for all steps at once, only the recurrence in the loop."""

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
        gates_tbg = jnp.swapaxes(self.input(x_btc), 0, 1)
        recurrent = self.recurrent.astype(self.dtype)
        start = self.start(x_btc.shape[0]) if start is None else start
        _, h_tbc = jax.lax.scan(lambda c, g: _cell(c, g, recurrent), start, gates_tbg, unroll=4)
        return jnp.swapaxes(h_tbc, 0, 1)

    def constant(self, x_bc, steps: int):
        """The same of one input at every step: [b, c] -> [b, steps, features]."""
        return self(jnp.broadcast_to(x_bc[:, None], (x_bc.shape[0], steps, x_bc.shape[1])))

    def step(self, carry, x_bc):
        """One row: (carry, x [b, c]) -> (carry, h [b, features])."""
        return _cell(carry, self.input(x_bc), self.recurrent.astype(self.dtype))


def _cell(carry, gates, recurrent):
    h, c = carry
    i, f, g, o = jnp.split(gates + h @ recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h
