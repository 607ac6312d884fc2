"""From `config.Optim` to an optax transform and a learning rate.

The two are kept apart: the rate is a function of the train step, not of optax's own count of updates,
so a player that starts late or is held back by a gate is in phase with the others.
"""

import jax
import jax.numpy as jnp
import optax

from vae_jax.config import Optim


def learning_rate(optim: Optim, steps: int, step, xp=jnp):
    """Rate at `step` of a run of `steps`; with xp=numpy the same formula for the log, without touching the device."""
    length = optim.decay_steps or steps
    rate = xp.asarray(optim.lr, xp.float32)
    t = xp.maximum(step - optim.warmup_steps, 0)
    if optim.schedule == "cosine":
        rate = rate * 0.5 * (1 + xp.cos(xp.pi * xp.minimum(t / max(length - optim.warmup_steps, 1), 1.0)))
    elif optim.schedule == "linear":
        rate = rate * (1 + (optim.factor - 1) * xp.minimum(t / length, 1.0))
    elif optim.schedule == "exponential":
        rate = rate * optim.factor ** (t / length)
    elif optim.schedule == "step":
        rate = rate * optim.factor ** sum(((step >= b) * 1.0 for b in optim.boundaries), start=0.0)
    if optim.warmup_steps:
        rate = rate * xp.minimum((step + 1) / optim.warmup_steps, 1.0)
    return rate


def decays(params):
    """Mask of the leaves weight decay applies to: kernels (two or more axes), never biases, scales or embeddings."""
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and getattr(path[-1], "key", "") in ("kernel", "recurrent"), params)


def transform(optim: Optim) -> optax.GradientTransformation:
    """Gradient -> direction of descent, before the learning rate. Clipping is done by `update`, over players together."""
    core = {
        "adam": lambda: optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        "rmsprop": lambda: optax.scale_by_rms(optim.b2, optim.eps),
        "sgd": lambda: optax.trace(optim.b1),
    }[optim.name]()
    if optim.weight_decay:
        return optax.chain(core, optax.add_decayed_weights(optim.weight_decay, decays))
    return core
