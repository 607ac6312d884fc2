"""Models that read or make a picture or a roll row by row: LSTMs over rows, the same bar by bar under a conductor, and what they are made of."""

import flax.linen as nn
import jax.numpy as jnp

from vae_jax.layers.recurrent import Lstm


def both_ways(x_btc, hidden, dtype):
    """[b, t, c] -> [b, 2 * hidden[-1]]: LSTMs read rows forwards and backwards, layer on layer; each direction's last state. In a compact module."""
    for units in hidden:
        ahead, back = Lstm(units, dtype)(x_btc), Lstm(units, dtype)(x_btc[:, ::-1])
        x_btc = jnp.concatenate([ahead, back[:, ::-1]], -1)
    return jnp.concatenate([ahead[:, -1], back[:, -1]], -1)


class BarEncoder(nn.Module):
    """Reads the rows of every bar both ways, all bars at once, and then what it made of each bar, again both ways: [b, t, c] -> features [b, ..].

    MusicVAE reads all rows in one go; here a row is as many steps from the code as a bar has rows and the window bars.
    """

    hidden: tuple[int, ...]
    bar: int  # rows
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_btc):
        bars = x_btc.reshape(-1, self.bar, x_btc.shape[-1])
        made = both_ways(bars, self.hidden, self.dtype)
        return both_ways(made.reshape(x_btc.shape[0], -1, made.shape[-1]), self.hidden[-1:], self.dtype)


class RowDecoder(nn.Module):
    """LSTM over the rows of a picture, z at every step. An `autoregressive` one begins in a state made of z (Bowman et al. 2016) and reads the
    row before and, in its own row, the pixels to the left.

    The latter is a strong decoder: it can do without z, which is what rows A10 and M5 of the ledger show and cure.
    """

    hidden: tuple[int, ...]
    width: int  # pixels a row
    channels: int  # outputs a pixel
    autoregressive: bool
    steps: int  # rows
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.layers = [Lstm(units, self.dtype) for units in self.hidden[::-1]]
        self.out = nn.Dense(self.width * self.channels, dtype=self.dtype)
        if self.autoregressive:
            self.first = [nn.Dense(2 * units, dtype=self.dtype) for units in self.hidden[::-1]]
            self.within = LeftToRight(self.width, self.channels, dtype=self.dtype)

    def __call__(self, z_bd, rows_btc=None):
        """Outputs [b, steps, width * channels]; `rows_btc` are the true rows, of which an autoregressive decoder sees what lies before."""
        if not self.autoregressive:
            x = self.layers[0].constant(z_bd, self.steps)
            for layer in self.layers[1:]:
                x = layer(x)
            return self.out(x)
        x = jnp.pad(rows_btc, ((0, 0), (1, 0), (0, 0)))[:, :-1].astype(self.dtype)
        for layer, start in zip(self.layers, self.starts(z_bd)):
            x = layer(x, start)
        return self.out(x) + self.within(x, rows_btc)

    def starts(self, z_bd):
        """The carry of each layer before the first row."""
        return [tuple(jnp.split(jnp.tanh(first(z_bd)), 2, -1)) for first in self.first]

    def generate(self, z_bd, feedback):
        """The same on its own rows: `feedback(outputs [b, width * channels], t)` makes the next input from an output."""

        def step(module, carry, t):
            states, row = carry
            x, new = row.astype(module.dtype), []
            for layer, state in zip(module.layers, states):
                state, x = layer.step(state, x)
                new.append(state)
            base, row = module.out(x), jnp.zeros_like(row)
            for _ in range(module.width):  # pixel j is right once the j pixels before it are, so after `width` rounds all are
                outputs = base + module.within(x, row)
                row = feedback(outputs, t)
            return (new, row), outputs

        first = jnp.zeros_like(feedback(jnp.zeros((z_bd.shape[0], self.width * self.channels)), 0))
        carry = (self.starts(z_bd), first)
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, out_axes=1)
        return scan(self, carry, jnp.arange(self.steps))[1]


class BarDecoder(nn.Module):
    """A conductor, an LSTM with z at every step, makes one state a bar, and a `RowDecoder` makes the rows of each bar from its state alone, all bars
    at once (Roberts et al. 2018, MusicVAE): what bars have in common must pass through the conductor, so long windows need no long memory."""

    hidden: tuple[int, ...]
    width: int
    channels: int
    autoregressive: bool  # within a bar
    bar: int  # rows
    steps: int  # a multiple of `bar`
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.conductor = Lstm(self.hidden[-1], self.dtype)
        self.rows = RowDecoder(self.hidden, self.width, self.channels, self.autoregressive, self.bar, self.dtype)

    def __call__(self, z_bd, rows_btc=None):
        """As `RowDecoder`."""
        rows = None if rows_btc is None else rows_btc.reshape(-1, self.bar, rows_btc.shape[-1])
        return self.rows(self.states(z_bd), rows).reshape(z_bd.shape[0], self.steps, -1)

    def generate(self, z_bd, feedback):
        """The same on its own rows: `feedback(outputs [b * bars, width * channels], t)`, t counting the rows of a bar."""
        return self.rows.generate(self.states(z_bd), feedback).reshape(z_bd.shape[0], self.steps, -1)

    def states(self, z_bd):
        """One a bar, [b * bars, units]."""
        return self.conductor.constant(z_bd, self.steps // self.bar).reshape(-1, self.hidden[-1])


class LeftToRight(nn.Module):
    """Outputs of each pixel of a row from a state h [..., k] and the pixels to its left: one hidden layer of `units` a pixel, masked (Germain et
    al. 2015, MADE). h, row [..., width * c] -> [..., width * channels]."""

    width: int
    channels: int
    units: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h, row):
        pixel = jnp.arange(row.shape[-1]) // (row.shape[-1] // self.width)
        kernel = self.param("left", nn.initializers.lecun_normal(), (row.shape[-1], self.width, self.units))
        left = jnp.where(pixel[:, None, None] < jnp.arange(self.width)[:, None], kernel, 0.0).reshape(row.shape[-1], -1).astype(self.dtype)
        x = nn.relu(nn.Dense(self.width * self.units, dtype=self.dtype, name="state")(h) + row.astype(self.dtype) @ left)
        out = self.param("out", nn.initializers.normal(self.units**-0.5), (self.width, self.units, self.channels)).astype(self.dtype)
        y = jnp.einsum("...wu,wuc->...wc", x.reshape(*x.shape[:-1], self.width, self.units), out)
        return y.reshape(*y.shape[:-2], -1)
