"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499): p(x) of a sequence of integers as a product over its positions. No losses inside.

The integers are classes (mu-law sound, codes of a codebook) or, with `components`, the levels of a wave. One set of parameters, two forms. The full
pass gives the outputs of all positions at once, for training. `start` and `step` give those of one position after another: every layer looks back by
its dilation, so all that a position needs of the past is there before it begins, and is read at once from one array that holds the rings of all
layers. `generate` draws whole sequences by `step`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vae_jax.config import UserError
from vae_jax.layers import convolutions_1d
from vae_jax.losses import discretized

GROUPS, BLOCKS = 5, 10  # see `prepare`


class WaveNet(nn.Module):
    """x int32 [b, t] in 0..classes-1 -> outputs float32 [b, t, outputs]; those of a position depend on the positions before it alone.

    components = 0: x is embedded, and the outputs are `classes` logits (discretized.softmax_log_prob). components > 0: x enters as a number in -1..1,
    and the outputs are a mixture of that many logistics over the levels (discretized.logistic_log_prob); 65,536 classes are 16-bit sound + 32,768.
    condition float [b, g] (global: speaker, class) and local [b, t / s, c], whose rows serve s positions each, are added in every gate.
    gate: "dilation channels", each a tanh times a sigmoid. Raises UserError for a kernel of 1 and for conditions other than those of `init`.
    """

    classes: int = 256
    components: int = 0
    dilations: tuple[int, ...] = tuple(2**i for i in range(10)) * 5
    kernel: int = 2
    residual: int = 32
    gate: int = 32
    skip: int = 512
    dtype: Any = jnp.float32  # of the computation; parameters and outputs are float32

    @nn.compact
    def __call__(self, x_bt, condition_bg=None, local_btc=None):
        if self.kernel < 2 or not self.dilations or min(self.dilations) < 1:
            raise UserError(f"This WaveNet's kernel is {self.kernel} and its dilations are {self.dilations}: "
                            "choose a kernel of at least 2 and dilations of at least 1.")
        if not self.is_initializing():
            _check(self.variables["params"], condition=condition_bg, local=local_btc)
        p = jax.tree.map(lambda v: v.astype(self.dtype), self._parameters(condition_bg, local_btc))
        h = jnp.pad(_enter(self, p, x_bt)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        everywhere_lbg = _everywhere(p, condition_bg)
        _rows_fit(local_btc, x_bt.shape[1])
        gated = []
        for i, dilation in enumerate(self.dilations):
            past = jnp.pad(h, ((0, 0), ((self.kernel - 1) * dilation, 0), (0, 0)))
            x = convolutions_1d.conv(past, p["gate"][i], dilation=dilation) + everywhere_lbg[i][:, None]
            gated.append(_gate(x if local_btc is None else _beside(x, local_btc.astype(self.dtype) @ p["local"][:, i])))
            if i < len(self.dilations) - 1:
                h = h + gated[-1] @ p["residual"][i]
        return _head({**p, **{name: [[p[name]]] for name in ("skip", "head", "out")}}, gated)

    def _parameters(self, condition_bg, local_btc):
        n, r, g = len(self.dilations), self.residual, 2 * self.gate
        outputs = 3 * self.components or self.classes
        start = lambda scale, **axes: nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal", **axes)
        zeros = nn.initializers.zeros
        shapes = {
            "entry": (nn.initializers.normal(1.0), (1 if self.components else self.classes, r)),
            "gate": (start(1.0, in_axis=(1, 2), batch_axis=0), (n, self.kernel, r, g)),
            "gate_bias": (zeros, (n, g)),
            "skip": (start(2.0), (n * self.gate, self.skip)),
            "skip_bias": (zeros, (self.skip,)),
            "head": (start(2.0), (self.skip, self.skip)),
            "head_bias": (zeros, (self.skip,)),
            "out": (start(1.0), (self.skip, outputs)),
            "out_bias": (zeros, (outputs,)),
        }
        if n > 1:  # their sum is of the scale of one
            shapes["residual"] = start(1.0 / n, in_axis=1, batch_axis=0), (n - 1, self.gate, r)
        for name, x in (("condition", condition_bg), ("local", local_btc)):
            if x is not None:
                shapes[name] = start(1.0, in_axis=0, out_axis=(1, 2)), (x.shape[-1], n, g)
        return {name: self.param(name, *how) for name, how in shapes.items()}


def receptive_field(model: WaveNet) -> int:
    """Number of positions just before one that its outputs depend on."""
    return 1 + (model.kernel - 1) * sum(model.dilations)


def prepare(model: WaveNet, params, batch: int, condition_bg=None):
    """What `step` takes of the parameters: cut apart by layer, in the computation's dtype, with the condition [batch, g] worked in.

    Outside of the loop over positions, where cutting takes longer than multiplying. For one sequence on a CPU the kernels behind the gates are cut
    further into BLOCKS of columns, and the skip connections into GROUPS of layers: XLA has one core multiply a vector by a matrix, and these matrices
    overflow its cache, but hands a part of many independent products to other cores, which multiply by one group while the next layers are under way.
    """
    p = params["params"]
    _check(p, condition=condition_bg)
    p = jax.tree.map(lambda v: v.astype(model.dtype), p)
    groups, blocks = (min(GROUPS, len(model.dilations)), BLOCKS) if batch == 1 and jax.default_backend() == "cpu" else (1, 1)
    ends = np.cumsum([len(layers) for layers in np.array_split(model.dilations, groups)]) * model.gate
    rows = {"skip": jnp.split(p["skip"], ends[:-1]), "head": [p["head"]], "out": [p["out"]]}
    weights = {
        **{name: p[name] for name in ("entry", "skip_bias", "head_bias", "out_bias", "local") if name in p},
        **{name: [jnp.array_split(row, min(blocks, row.shape[-1]), -1) for row in group] for name, group in rows.items()},
        "everywhere": _everywhere(p, condition_bg),
        "past": p["gate"][:, :-1],
        "now": list(p["gate"][:, -1]),
        "residual": list(p.get("residual", ())),  # of all layers but the last
    }
    return lax.optimization_barrier(weights)


def localise(model: WaveNet, weights, local_bc):
    """The same weights for positions that share a row of the local condition, which is worked in: `step` is then given none."""
    added_lbg = jnp.einsum("bc,clg->lbg", local_bc.astype(model.dtype), weights["local"])
    return {name: w for name, w in weights.items() if name != "local"} | {"everywhere": weights["everywhere"] + added_lbg}


def start(model: WaveNet, batch: int):
    """The state of `step` before the first position."""
    return {"position": jnp.int32(0), "rings": jnp.zeros(((model.kernel - 1) * sum(model.dilations), batch, model.residual), model.dtype)}


def step(model: WaveNet, weights, state, previous_b, local_bc=None):
    """(state, outputs [b, outputs] of the next position): the full pass, one position a call. A pure function, to be compiled by the caller.

    weights: from `prepare`. previous: int32 [b], the integers of the position before, of any value at the first one; local: its row for the
    next position.
    """
    _check(weights, local=local_bc)
    if local_bc is not None:
        weights = localise(model, weights, local_bc)
    position = state["position"]
    rows_lk = _rows(model, position)
    past = state["rings"].at[rows_lk].get(mode="promise_in_bounds", unique_indices=True)
    x_lbg = jnp.einsum("lkbr,lkrg->lbg", past, weights["past"]) + weights["everywhere"]
    h = jnp.where(position > 0, _enter(model, weights, previous_b), 0)
    inputs, gated = [h], []
    for i in range(len(model.dilations)):
        gated.append(_gate(x_lbg[i] + inputs[i] @ weights["now"][i]))
        if i < len(model.dilations) - 1:
            inputs.append(inputs[i] + gated[i] @ weights["residual"][i])
    # The oldest row of each ring, read above, gives way to the newest
    rings = state["rings"].at[rows_lk[:, 0]].set(jnp.stack(inputs), mode="promise_in_bounds", unique_indices=True)
    return {"position": position + 1, "rings": rings}, _head(weights, gated)


@functools.partial(jax.jit, static_argnames=("model", "shape", "top_k"))
def generate(model: WaveNet, params, key, shape, condition_bg=None, local_btc=None, temperature=1.0, top_k=None, x_bt=None, mask_bt=None):
    """Draws sequences: int32 of shape (b, t), the same for the same key.

    temperature: a number or [b]; top_k: of classes; see `discretized`. Where mask [b, t] is True the integer given in x is kept, and everything
    behind it is drawn to fit (a given beginning, or gaps to be filled); what lies before it is not. Raises UserError for top_k with logistics and for
    x or mask alone.
    """
    b, t = shape
    if (x_bt is None) != (mask_bt is None):
        raise UserError("A WaveNet completes a sequence x where a mask says which positions are given: pass both or neither.")
    if top_k and model.components:
        raise UserError("top_k chooses among classes, but this WaveNet's outputs are logistics: lower the temperature instead.")
    weights = prepare(model, params, b, condition_bg)
    _check(weights, local=local_btc)
    _rows_fit(local_btc, t)
    n = 1 if local_btc is None else local_btc.shape[1]

    def row(carry, inputs):
        local, rest = inputs
        own = weights if local is None else localise(model, weights, local)
        return lax.scan(functools.partial(position, own), carry, rest)

    def position(own, carry, inputs):
        state, previous = carry
        uniform, given, mask = inputs
        state, outputs = step(model, own, state, previous)
        if model.components:
            x = discretized.logistic_draw(uniform, outputs, model.classes, temperature)
        else:
            x = discretized.softmax_draw(uniform[:, 0], outputs, temperature, top_k)
        x = x if mask is None else jnp.where(mask, given, x)
        return (state, x), x

    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (b, 2)))(jnp.arange(t))
    given, mask = (None if x is None else jnp.broadcast_to(x, shape).T for x in (x_bt, mask_bt))
    by_row = jax.tree.map(lambda x: x.reshape(n, t // n, *x.shape[1:]), (uniform, given, mask))
    local = None if local_btc is None else jnp.broadcast_to(local_btc, (b, *local_btc.shape[1:])).swapaxes(0, 1)
    return lax.scan(row, (start(model, b), jnp.zeros(b, jnp.int32)), (local, by_row))[1].reshape(t, b).T


def _enter(model, p, x):
    """Integers [...] -> [..., residual]."""
    return discretized.unit(x, model.classes)[..., None].astype(model.dtype) * p["entry"][0] if model.components else p["entry"][x]


def _everywhere(p, condition_bg):
    """[layers, b or 1, 2 gate]: what is added in the gates at every position."""
    bias = p["gate_bias"][:, None]
    return bias if condition_bg is None else bias + jnp.einsum("bg,gln->lbn", condition_bg.astype(bias.dtype), p["condition"])


def _beside(x_btg, local_bng):
    """Rows of local added to the positions that each of them serves."""
    (b, t, g), n = x_btg.shape, local_bng.shape[1]
    return x_btg + local_bng if n == t else (x_btg.reshape(b, n, t // n, g) + local_bng[:, :, None]).reshape(b, t, g)


def _gate(x):
    """tanh(a) sigmoid(b) of the halves a and b; one tanh over both is twice as fast on a CPU."""
    half = np.repeat(np.array([1.0, 0.5], x.dtype), x.shape[-1] // 2)
    a, b = jnp.split(jnp.tanh(x * half), 2, -1)
    return a * (0.5 + 0.5 * b)


def _head(p, gated):
    """All layers' gates [..., gate] -> outputs [..., outputs] float32. One product sums the skip connections of a group of layers."""
    gates = iter(gated)
    groups = [jnp.concatenate([next(gates) for _ in range(row[0].shape[0] // gated[0].shape[-1])], -1) for row in p["skip"]]
    y = _product(groups, p["skip"]) + p["skip_bias"]
    y = _product([nn.relu(y)], p["head"]) + p["head_bias"]
    return (_product([nn.relu(y)], p["out"]) + p["out_bias"]).astype(jnp.float32)


def _product(x, kernel):
    """Parts of x times the parts of a kernel: a list, by rows, of lists, by columns."""
    return sum(jnp.concatenate([part @ block for block in row], -1) for part, row in zip(x, kernel))


def _rows(model, position):
    """[layers, kernel - 1]: the rows of the rings that hold what the layers look back at, the oldest first.

    Layer i has a ring of (kernel - 1) dilation_i rows; position p is written to row p modulo that.
    """
    dilations = np.array(model.dilations)
    lengths = (model.kernel - 1) * dilations
    back = np.arange(model.kernel - 1) * dilations[:, None]
    return (np.cumsum(lengths) - lengths)[:, None] + (position + back) % lengths[:, None]


def _check(p, **given):
    for name, x in given.items():
        if (name in p) != (x is not None):
            words = ("with", "give it one") if name in p else ("without", "give it none")
            raise UserError(f"This WaveNet was made {words[0]} a {'local' if name == 'local' else 'global'} condition: {words[1]}.")


def _rows_fit(local_bnc, positions):
    if local_bnc is not None and positions % local_bnc.shape[1]:
        raise UserError(f"This WaveNet's local condition has {local_bnc.shape[1]} rows for {positions} positions: "
                        "give a row for each, or one for each so many.")
