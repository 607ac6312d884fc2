"""The train state and the one pure update, for any tuple of moves. Knows players and losses, no model's name."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vae_jax import mesh as meshes
from vae_jax import optim as optims
from vae_jax.config import Config, Optim, UserError
from vae_jax.tasks import Task

NEVER = -1
WORDS = 4  # 32 metric names each


@flax.struct.dataclass
class TrainState:
    """Everything a step depends on besides its batch. Data and randomness are functions of (seed, step)."""

    step: jax.Array  # int32
    params: dict[str, Any]  # player -> tree
    variables: dict[str, Any]  # player -> non-trained collections
    opt: dict[str, Any]  # trained player -> optax state
    ema: dict[str, Any]  # averaged player -> tree like params
    key: jax.Array  # base key, never advanced
    bad_step: jax.Array  # int32, the first step with a value that is not finite; NEVER before
    bad_terms: jax.Array  # uint32 [WORDS], bit i = the i-th metric name of that step in sorted order was not finite


def trained(task: Task) -> tuple[str, ...]:
    """Players that some move trains, sorted."""
    return tuple(sorted({p for move in task.moves.values() for p in move.players}))


def optim_of(task: Task, config: Config, player: str) -> Optim:
    return task.optim.get(player, config.optim)


def init_state(task: Task, config: Config, batch) -> TrainState:
    """A fresh state; `batch` only lends its shapes to `task.init`. Frozen players get no optimizer state."""
    key = jax.random.key(config.seed)
    params, variables = jax.tree.map(_strong, task.init(jax.random.fold_in(key, 0), batch))
    players = trained(task)
    unknown = sorted(set(config.optim.ema_players) - set(players))
    if unknown:
        raise UserError(f"config.optim.ema_players names {unknown[0]!r}, but the trained players are {', '.join(players)}.")
    averaged = [p for p in players if optim_of(task, config, p).ema and p in (config.optim.ema_players or players)]
    return TrainState(
        step=jnp.int32(0), params=params, variables=variables,
        opt={p: optims.transform(optim_of(task, config, p)).init(params[p]) for p in players},
        ema={p: jax.tree.map(jnp.copy, params[p]) for p in averaged},
        key=jax.random.fold_in(key, 1), bad_step=jnp.int32(NEVER), bad_terms=jnp.zeros(WORDS, jnp.uint32),
    )


def _strong(x):
    """x with a type of its own: the weak type of a constant such as jnp.full(n, 0.5) is lost in the first step, which would compile again."""
    return jax.lax.convert_element_type(x, x.dtype)


def eval_params(state: TrainState) -> dict:
    """The weights that evaluation, samples and exports use: averaged where an average is kept."""
    return {**state.params, **state.ema}


def make_update(task: Task, config: Config, mesh):
    """-> update(state, batch, moves), jitted: `moves` static, state donated, -> (state, {metric: scalar})."""
    step_fn = functools.partial(update, task, config)
    return jax.jit(step_fn, static_argnums=2, donate_argnums=0, out_shardings=meshes.replicated(mesh))


def update(task: Task, config: Config, state: TrainState, batch: dict, moves: tuple[str, ...]) -> tuple[TrainState, dict]:
    """One step. All moves are differentiated at the params the step began with, under one key, then applied together."""
    key = jax.random.fold_in(state.key, state.step)
    grads, variables, metrics, held = {}, {}, {}, {}
    for name in moves:
        move = task.moves[name]
        move_grads, move_variables, found = _differentiate(move, state, batch, key, config.optim.accumulate)
        clash = set(found) & set(metrics)
        if clash:
            raise ValueError(f"moves {moves} both report {sorted(clash)}")
        metrics |= found
        open_ = move.gate(found) if move.gate else {}
        for player in move.players:
            grads[player] = _add(grads[player], move_grads[player]) if player in grads else move_grads[player]
            held[player] = held.get(player, False) | ~jnp.asarray(open_[player]) if player in open_ else held.get(player, False)
            if player in move_variables:
                variables[player] = move_variables[player]
    grads, norm = _clip(task, config, grads)
    metrics["grad_norm"] = norm

    params, opt, ema = {**state.params}, {**state.opt}, {**state.ema}
    new_variables = {**state.variables, **variables}
    for player in grads:
        o = optim_of(task, config, player)
        direction, opt[player] = optims.transform(o).update(grads[player], state.opt[player], state.params[player])
        rate = optims.learning_rate(o, config.optim.decay_steps, state.step)
        params[player] = jax.tree.map(lambda p, d: p - rate * d, state.params[player], direction)
        if held[player] is not False:
            keep = functools.partial(jax.tree.map, functools.partial(jnp.where, held[player]))
            params[player], opt[player] = keep(state.params[player], params[player]), keep(state.opt[player], opt[player])
            if player in variables:
                new_variables[player] = keep(state.variables[player], new_variables[player])
        if player in ema:
            forget = jnp.maximum(1 - o.ema, 9 / (state.step + 10))  # at first the average is of few steps, or it would still hold the initial weights
            ema[player] = optax.incremental_update(params[player], state.ema[player], forget)

    names = sorted(metrics)
    wrong = jnp.stack([~jnp.all(jnp.isfinite(metrics[n])) for n in names])
    first = jnp.any(wrong) & (state.bad_step == NEVER)
    bits = jnp.pad(wrong, (0, 32 * WORDS - len(names))).reshape(WORDS, 32) * 2 ** jnp.arange(32, dtype=jnp.uint32)
    state = state.replace(
        step=state.step + 1, params=params, variables=new_variables, opt=opt, ema=ema,
        bad_step=jnp.where(first, state.step, state.bad_step), bad_terms=jnp.where(first, jnp.sum(bits, 1, dtype=jnp.uint32), state.bad_terms),
    )
    return state, metrics | {"finite": state.bad_step == NEVER, "bad_step": state.bad_step, "bad_terms": state.bad_terms}


def bad_terms(words, names) -> list[str]:
    """Names of the metrics that were not finite, from `TrainState.bad_terms` and the step's metric names."""
    own = sorted(n for n in names if n not in ("finite", "bad_step", "bad_terms"))
    return [n for i, n in enumerate(own) if int(words[i // 32]) >> i % 32 & 1]


def _differentiate(move, state, batch, key, parts):
    """Gradient, variables and metrics of one move, averaged over `parts` micro-batches."""

    def loss_fn(own, variables, batch, key):
        return move.loss({**state.params, **own}, variables, batch, key, state.step)

    own = {p: state.params[p] for p in move.players}
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (_, (variables, metrics)), grads = grad_fn(own, state.variables, batch, key)
        return grads, variables, metrics

    # Interleaved rows, so that every micro-batch stays spread over all devices.
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

    def body(carry, inputs):
        grads, variables = carry
        i, part = inputs
        (_, (variables, metrics)), g = grad_fn(own, {**state.variables, **variables}, part, jax.random.fold_in(key, i))
        return (_add(grads, g), {p: variables[p] for p in carry[1]}), metrics

    start = (jax.tree.map(jnp.zeros_like, own), {p: state.variables[p] for p in move.players if p in state.variables})
    # Convolutions inside a loop are 5-70x slower on the CPU, so there the loop is written out.
    (grads, variables), metrics = jax.lax.scan(body, start, (jnp.arange(parts), micro), unroll=jax.default_backend() == "cpu" or 1)
    return jax.tree.map(lambda g: g / parts, grads), variables, jax.tree.map(lambda m: jnp.mean(m, 0), metrics)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


def _clip(task, config, grads):
    """Clips by the global norm over the players that share their optimizer settings; returns also the norm over all."""
    settings = {p: optim_of(task, config, p) for p in grads}
    clipped = dict(grads)
    for o in {id(o): o for o in settings.values()}.values():
        group = {p: grads[p] for p in grads if settings[p] is o}
        if o.clip:
            scale = jnp.minimum(1.0, o.clip / (optax.tree.norm(group) + 1e-12))
            clipped |= jax.tree.map(lambda g: g * scale, group)
    return clipped, optax.tree.norm(grads)
