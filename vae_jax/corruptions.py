"""Pictures spoilt in four ways, for models that learn to undo it. Pure functions of (key, x [b, h, w, c] in 0..1); what they give is, in each case,
also the trivial repair that a model must beat."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError

SIGMA = 0.2  # of the noise, white = 1
FACTOR = 4  # of the low resolution
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def noise(key, x):
    """White noise, clipped to 0..1. Trivial repair: none."""
    return jnp.clip(x + SIGMA * jax.random.normal(key, x.shape), 0.0, 1.0)


def low_resolution(key, x):
    """Means of FACTOR x FACTOR pixels, enlarged by cubic interpolation."""
    b, h, w, c = x.shape
    small = x.reshape(b, h // FACTOR, FACTOR, w // FACTOR, FACTOR, c).mean((2, 4))
    return jnp.clip(jax.image.resize(small, x.shape, "cubic"), 0.0, 1.0)


def grey(key, x):
    """Luminance in all channels."""
    return jnp.broadcast_to(x @ jnp.float32(LUMINANCE)[:, None], x.shape) if x.shape[-1] == 3 else x


def patch(key, x):
    """A rectangle of half the height and width, anywhere, filled with the mean of the pixels around it."""
    b, h, w, _ = x.shape
    corner = jax.random.uniform(key, (2, b, 1)) * jnp.array([h - h // 2 + 1, w - w // 2 + 1])[:, None, None]
    inside = [(jnp.arange(n) >= jnp.floor(first)) & (jnp.arange(n) < jnp.floor(first) + n // 2) for n, first in zip((h, w), corner)]
    hidden = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
    seen = jnp.mean(x, (1, 2), keepdims=True, where=~hidden)
    return jnp.where(hidden, seen, x)


KINDS = {"noise": noise, "low_resolution": low_resolution, "grey": grey, "patch": patch}


def check(kinds, height: int, width: int) -> None:
    """Raises UserError for a name that is none of KINDS, or one that pictures of this size cannot have."""
    for kind in kinds:
        if "," in kind:
            raise UserError(f"corruptions={tuple(kinds)}: several are written \"('noise','grey')\", in quotes.")
        if kind not in KINDS:
            raise UserError(f"corruption {kind!r} is not known; choose among {', '.join(KINDS)}.")
    if "low_resolution" in kinds and (height % FACTOR or width % FACTOR):
        raise UserError(f"corruption 'low_resolution' needs sides that are multiples of {FACTOR}, and pictures are {height} x {width}: leave it out, "
                        "or prepare the data with another --size.")


def corrupt(key, x, kinds: tuple[str, ...]):
    """Each example spoilt in one of the ways `kinds`, at random; as it is where there is none."""
    if not kinds:
        return x
    key_kind, key = jax.random.split(key)
    chosen = jax.random.randint(key_kind, (len(x), 1, 1, 1), 0, len(kinds))
    return sum(jnp.where(chosen == i, KINDS[kind](jax.random.fold_in(key, i), x), 0.0) for i, kind in enumerate(kinds))
