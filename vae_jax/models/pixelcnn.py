"""Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328): p(codes) of a map as a product over its positions in raster order. No losses inside.

One set of parameters, two forms. The full pass gives the logits of all positions at once, for training. `start` and `step` give those of one position
after another at the cost of one map: the vertical stack, which looks at finished rows alone, runs once a row; of the horizontal stack, which runs at
every position, only the columns still in reach are kept. `generate` draws whole maps by `step`.

No weight is masked. The kernels are the halves that the paper's masks leave, and the map is shifted by its padding so that they see what they may.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vae_jax.config import UserError
from vae_jax.losses import discretized

OUTSIDE = -1  # the code of positions beyond the border: its embedding is 0. A learned one would add nothing: codes could be shifted against it


class PixelCNN(nn.Module):
    """codes int32 [b, h, w] in 0..classes-1, label int32 [b] (given just if `labels` > 0) -> logits float32 [b, h, w, classes].

    The logits of position (i, j) depend on what is before it in raster order and in reach: columns j - r .. j + r of the r rows above and the r
    positions to the left, r = `reach`. A label is added in both gates of each layer. Column j holds codes of codebook j % slots, each with embeddings
    of its own.
    Raises UserError for a kernel that is even or 1, and for a label that is missing or not asked for.
    """

    classes: int
    channels: int = 64
    layers: int = 8
    first_kernel: int = 7
    kernel: int = 3
    hidden: int = 256  # of the head
    labels: int = 0
    slots: int = 1  # codebooks whose codes take turns along a row
    dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

    @property
    def reach(self) -> int:
        return self.first_kernel // 2 + (self.layers - 1) * (self.kernel // 2)

    def setup(self):
        if any(k < 3 or k % 2 == 0 for k in (self.first_kernel, self.kernel)):
            raise UserError(f"PixelCNN's kernels are {self.first_kernel} and {self.kernel}: choose odd numbers from 3.")
        self.codes = self.param("codes", nn.initializers.normal(self.channels**-0.5), (self.slots * self.classes, self.channels))
        common = dict(channels=self.channels, labels=self.labels, dtype=self.dtype)
        self.stack = [Layer(kernel=self.kernel if i else self.first_kernel, first=not i, **common) for i in range(self.layers)]
        self.head = nn.Dense(self.hidden, dtype=self.dtype)
        self.out = nn.Dense(self.classes, dtype=self.dtype)

    def __call__(self, codes_bhw, label_b=None):
        self._check(label_b)
        v = h = self._embed(codes_bhw, jnp.arange(codes_bhw.shape[-1]))
        for layer in self.stack:
            n, last = layer.kernel // 2, -1 if layer.first else None
            v, link = layer.vertical(jnp.pad(v, ((0, 0), (n, 0), (0, 0), (0, 0)))[:, :last], label_b)
            h = layer.horizontal(jnp.pad(h, ((0, 0), (0, 0), (n, 0), (0, 0)))[:, :, :last], link)
        return self._logits(h)

    def start(self, batch: int, width: int, label_b=None):
        """The state before the first position of maps of `width` columns and any height."""
        self._check(label_b)
        first, n, c, later = self.first_kernel // 2, self.kernel // 2, self.channels, self.layers - 1
        return {
            "position": jnp.int32(0),
            "label": label_b,
            "rows": jnp.full((batch, first, width), OUTSIDE, jnp.int32),  # codes of the rows above
            "row": jnp.full((batch, first + width), OUTSIDE, jnp.int32),  # and of this one, behind what is left of it
            "above": [jnp.zeros((batch, n, width, c), self.dtype) for _ in range(later)],  # what later layers' vertical stack made of the rows above
            "left": [jnp.zeros((batch, 1, n, c), self.dtype) for _ in range(later)],  # and their horizontal one of the columns to the left
            "links": [jnp.zeros((batch, 1, width, 2 * c), self.dtype) for _ in range(self.layers)],  # this row's, to the horizontal gates
        }

    def step(self, state, previous_b):
        """(state, logits [b, classes] of the next position). previous: codes int32 [b] of the position before, of any value at the first one."""
        position, first = state["position"], self.first_kernel // 2
        width = state["row"].shape[1] - first
        column, before = position % width, (position - 1) % width
        previous = jnp.where(position > 0, previous_b, OUTSIDE)
        row = lax.dynamic_update_slice(state["row"], previous[:, None], (0, first + before))
        kept = {name: state[name] for name in ("rows", "above", "links")}
        # A loop of one pass or none, not lax.cond: that would copy, at every position, what it only hands through, and take a third longer.
        new_row = lambda _, kept: self._new_row(kept, row[:, first:], state["label"])
        kept = lax.fori_loop(0, (column == 0).astype(jnp.int32), new_row, kept)
        link = [lax.dynamic_slice_in_dim(x, column, 1, 2) for x in kept["links"]]
        left = [jnp.where(column == 0, 0, x) for x in state["left"]]
        left_of = self._embed(lax.dynamic_slice_in_dim(row, column, first, 1), column - first + jnp.arange(first))
        h = self.stack[0].horizontal(left_of[:, None], link[0])
        for i, layer in enumerate(self.stack[1:]):
            seen = jnp.concatenate([left[i], h], 2)
            left[i], h = seen[:, :, 1:], layer.horizontal(seen, link[i + 1])
        state = {**state, **kept, "position": position + 1, "row": row, "left": left}
        return state, self._logits(h)[:, 0, 0]

    def _new_row(self, kept, row_bw, label_b):
        rows = jnp.concatenate([kept["rows"], row_bw[:, None]], 1)[:, 1:]
        v, link = self.stack[0].vertical(self._embed(rows, jnp.arange(rows.shape[-1])), label_b)
        above, links = [], [link]
        for layer, x in zip(self.stack[1:], kept["above"]):
            seen = jnp.concatenate([x, v], 1)
            above.append(seen[:, 1:])
            v, link = layer.vertical(seen, label_b)
            links.append(link)
        return {"rows": rows, "above": above, "links": links}

    def _embed(self, codes, columns):
        known, own = (codes != OUTSIDE)[..., None], self.classes * (columns % self.slots)
        found = jnp.take(self.codes, jnp.maximum(codes, 0) + own, axis=0)  # NaN for a code beyond the last
        return jnp.where(known, found, 0).astype(self.dtype)

    def _logits(self, h):
        return self.out(nn.relu(self.head(nn.relu(h)))).astype(jnp.float32)

    def _check(self, label_b):
        if (label_b is None) != (self.labels == 0):
            state = f"of {self.labels} labels: give one for each map" if self.labels else "unconditional: give it no label"
            raise UserError(f"This PixelCNN is {state}.")


class Layer(nn.Module):
    """One layer of both stacks (the paper's figure 2). The first one looks at nothing of its own row (vertical) or column (horizontal)."""

    channels: int
    kernel: int
    first: bool
    labels: int
    dtype: Any

    def setup(self):
        c, n = self.channels, self.kernel // 2 + (not self.first)
        start, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        self.kernel_vertical = self.param("kernel_vertical", start, (n, self.kernel, c, 2 * c))
        self.bias_vertical = self.param("bias_vertical", zeros, (2 * c,))
        self.kernel_horizontal = self.param("kernel_horizontal", start, (1, n, c, 2 * c))
        self.link = nn.Dense(2 * c, dtype=self.dtype)
        self.mix = nn.Dense(c, dtype=self.dtype)
        if self.labels:
            self.label = nn.Embed(self.labels, 4 * c, dtype=self.dtype)

    def vertical(self, v_bhwc, label_b):
        """h rows below kernel // 2 others (first: those above alone) -> their features [b, h, w, c] and the links to the horizontal gates."""
        n = self.kernel // 2
        v = jnp.pad(v_bhwc, ((0, 0), (0, 0), (n, n), (0, 0)))
        x = _convolve(v, self.kernel_vertical.astype(self.dtype)) + self.bias_vertical.astype(self.dtype)
        link = self.link(x)
        if label_b is not None:
            to_vertical, to_horizontal = jnp.split(self.label(label_b)[:, None, None], 2, -1)
            x, link = x + to_vertical, link + to_horizontal
        return _gate(x), link

    def horizontal(self, h_bhwc, link):
        """w columns to the right of kernel // 2 others (first: those to the left alone) -> their features [b, h, w, c]."""
        y = self.mix(_gate(_convolve(h_bhwc, self.kernel_horizontal.astype(self.dtype)) + link))
        return y if self.first else h_bhwc[:, :, self.kernel // 2:] + y


def start(model: PixelCNN, params, batch: int, width: int, label_b=None):
    """The state of `step` before the first position; see PixelCNN.start. params: as model.init gives them."""
    return model.apply(params, batch, width, label_b, method="start")


def step(model: PixelCNN, params, state, previous_b):
    """(state, logits [b, classes]): the full pass, one position a call in raster order; see PixelCNN.step. Pure; the caller compiles it."""
    return model.apply(params, state, previous_b, method="step")


@partial(jax.jit, static_argnames=("model", "shape", "top_k"))
def generate(model: PixelCNN, params, key, shape, label_b=None, temperature=1.0, top_k=None, codes_bhw=None, mask_bhw=None):
    """Draws maps: codes int32 of shape (b, h, w), the same for the same key.

    temperature: a number or [b]; top_k: see `discretized.softmax_draw`. Where mask [b, h, w] is True the code given in `codes` is kept: what follows
    it in raster order is drawn to fit it, what comes before knows nothing of it.
    """
    if (codes_bhw is None) != (mask_bhw is None):
        raise ValueError("codes and mask are given together or not at all")
    b, h, w = shape
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (b,))
    known = codes_bhw is not None
    given = tuple(jnp.broadcast_to(x, shape).reshape(b, h * w).T for x in (codes_bhw, mask_bhw)) if known else ()

    def position(carry, inputs):
        state, previous = carry
        uniform, *given = inputs
        state, logits = step(model, params, state, previous)
        code = discretized.softmax_draw(uniform, logits, temperature, top_k)
        code = jnp.where(given[1], given[0], code) if known else code
        return (state, code), code

    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (b,)))(jnp.arange(h * w))
    first = start(model, params, b, w, label_b), jnp.zeros(b, jnp.int32)
    return lax.scan(position, first, (uniform, *given))[1].T.reshape(shape)


def _gate(x):
    a, b = jnp.split(x, 2, -1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def _convolve(x_bhwc, kernel):
    """x [b, h, w, c] * kernel [k, m, c, n] -> [b, h - k + 1, w - m + 1, n].

    A matrix product on patches where that is faster: on a CPU (training steps took a tenth to a third less; inside a scan, convolutions are 5 to 70
    times as slow), and anywhere for a single position.
    """
    k, m, c, n = kernel.shape
    rows, columns = x_bhwc.shape[1] - k + 1, x_bhwc.shape[2] - m + 1
    if jax.default_backend() != "cpu" and (rows, columns) != (1, 1):
        return lax.conv_general_dilated(x_bhwc, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    patches = [x_bhwc[:, i:i + rows, j:j + columns] for i in range(k) for j in range(m)]
    return jnp.concatenate(patches, -1) @ kernel.reshape(k * m * c, n)
