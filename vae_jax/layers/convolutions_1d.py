"""Convolutions of sequences x_btc without padding: what `streaming.py` and the critics are made of.

Padding is the caller's, by jnp.pad: given to the convolution itself it makes the gradient of the kernel slow on a CPU.
"""

import jax
import jax.numpy as jnp
from jax import lax

ORDER = ("NWC", "WIO", "NWC")
FEW_FRAMES, LARGE_KERNEL = 256, 2**19  # frames made, over the batch, and numbers in the kernel: measured on 2 cores, 1.3 to 3 times as fast there


def conv(x_btc, kernel_kcn, stride: int = 1, dilation: int = 1, groups: int = 1):
    """y [b, (t - (k - 1) dilation - 1) // stride + 1, n]: y[i] = sum_j x[i stride + j dilation] kernel[j]. kernel [k, c / groups, n].

    Groups are convolutions of their own: XLA's grouped one has a gradient of the kernel that took more time than the rest of RAVE.
    """
    if groups > 1:
        parts = zip(jnp.split(x_btc, groups, -1), jnp.split(kernel_kcn, groups, -1))
        return jnp.concatenate([conv(x, kernel, stride, dilation) for x, kernel in parts], -1)
    (b, t, c), (k, _, n) = x_btc.shape, kernel_kcn.shape
    frames = (t - (k - 1) * dilation - 1) // stride + 1
    few = isinstance(b * frames, int) and 8 < b * frames <= FEW_FRAMES  # an export may leave sizes open
    if jax.default_backend() == "cpu" and few and k * c * n >= LARGE_KERNEL:
        # XLA copies a kernel transposed for the gradient of x; a matrix product on patches does not, and here the kernel is what is large
        patches = [x_btc[:, i * dilation:i * dilation + (frames - 1) * stride + 1:stride] for i in range(k)]
        return jnp.dot(jnp.concatenate(patches, -1), kernel_kcn.reshape(k * c, n))
    return lax.conv_general_dilated(x_btc, kernel_kcn, (stride,), "VALID", rhs_dilation=(dilation,), dimension_numbers=ORDER)


def up(x_btc, kernel_2cm, ratio: int):
    """Transposed convolution of stride r and 2r taps, between its ends: x [b, t, c] -> y [b, (t - 1) r, n]; y[g r + a], a = 0..r-1, is
    x[g] kernel[0, :, a n:(a + 1) n] + x[g + 1] kernel[1, :, a n:(a + 1) n].

    The exact polyphase form: a plain convolution of two taps to r n channels, whose gradients every backend does well, and a reshape. kernel
    [2, c, r n] is kept in that form: putting its taps into order took a third of a block of a stream.
    """
    b, t, _ = x_btc.shape
    return conv(x_btc, kernel_2cm).reshape(b, (t - 1) * ratio, -1)


def bound(fan: int):
    """Initialiser of a kernel or bias that `init` draws from U(-1 / sqrt(fan), 1 / sqrt(fan)); alone it gives the bound."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, fan**-0.5, dtype)


def init(module, key, *inputs):
    """module.init(key, *inputs), its kernels and biases drawn at once: a draw for each takes a large network half a minute to compile."""
    variables = module.init(key, *inputs)
    paths, leaves = zip(*jax.tree.leaves_with_path(variables["params"]))
    drawn = [path[-1].key.startswith(("kernel", "bias")) for path in paths]
    shares = jax.random.uniform(key, (sum(x.size for x, d in zip(leaves, drawn) if d),), minval=-1.0)
    made, at = [], 0
    for x, d in zip(leaves, drawn):
        made.append(x * shares[at:at + x.size].reshape(x.shape) if d else x)
        at += x.size * d
    return {**variables, "params": jax.tree.unflatten(jax.tree.structure(variables["params"]), made)}
