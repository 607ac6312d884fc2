"""Convolutions of images that train fast on CPUs too: strided (down), stride 1, and exact transposed 4x4 stride 2 (up).

Parameters and results are the same on every backend; the form is chosen when the function is traced:
- GPU, TPU: `lax.conv_general_dilated`, which is what their libraries are made for.
- CPU: matrix products on explicit patches, kept in the order channels, height, width, batch. With the batch innermost each
  patch is a run of contiguous copies at any stride, interleaving the phases of a transposed convolution is one too, and all three
  products (forward, kernel gradient, input gradient) are plain row-major matrix products near the machine's peak.
  XLA's own CPU convolution reaches a fifth to a half of it in the gradients. The public order stays b, h, w, c: the transposes
  between neighbouring layers are changes of layout, which XLA resolves without a copy.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """Convolution with zero padding (kernel - 1) // 2 on all sides, as PyTorch's Conv2d with that padding.

    x [b, h, w, c] -> [b, (h + 2p - kernel) // stride + 1, likewise w, features]: ceil(h / stride) for an odd kernel,
    floor(h / stride) for kernel 4 and stride 2. Parameters: kernel [kernel, kernel, c, features], bias [features].
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x_bhwc):
        k, c = self.kernel, x_bhwc.shape[-1]
        kernel = self.param("kernel", uniform(k * k * c), (k, k, c, self.features))
        bias = self.param("bias", uniform(k * k * c), (self.features,))
        return conv(*(v.astype(self.dtype) for v in (x_bhwc, kernel, bias)), self.stride)


class Up(nn.Module):
    """Transposed convolution, 4x4 taps, stride 2, as PyTorch's ConvTranspose2d(c, features, 4, 2, 1) with a mirrored kernel.

    x [b, h, w, c] -> [b, 2h, 2w, features]. Parameters: kernel [4, 4, c, features] as `lax.conv_transpose` takes it, bias [features].
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc):
        kernel = self.param("kernel", uniform(16 * self.features), (4, 4, x_bhwc.shape[-1], self.features))
        bias = self.param("bias", uniform(16 * self.features), (self.features,))
        return up(*(v.astype(self.dtype) for v in (x_bhwc, kernel, bias)))


class ToVector(nn.Module):
    """Dense layer on a whole image: x [b, h, w, c] -> [b, features]. Parameters: kernel [c*h*w, features], bias [features].

    Rows of the kernel are channel-major, so that on a CPU the image is used as the convolutions leave it, without a transpose.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc):
        x_fb = _swap(x_bhwc).reshape(-1, x_bhwc.shape[0])
        kernel = self.param("kernel", uniform(x_fb.shape[0]), (x_fb.shape[0], self.features))
        bias = self.param("bias", uniform(x_fb.shape[0]), (self.features,))
        return (kernel.astype(self.dtype).T @ x_fb.astype(self.dtype)).T + bias.astype(self.dtype)


class ToImage(nn.Module):
    """Dense layer that makes an image: z [b, d] -> [b, h, w, c] = [b, *shape]. Parameters: kernel [d, c*h*w], bias [c*h*w].

    Columns are channel-major, for the reason given at ToVector.
    """

    shape: tuple[int, int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_bd):
        (h, w, c), d = self.shape, z_bd.shape[1]
        kernel = self.param("kernel", uniform(d), (d, c * h * w))
        bias = self.param("bias", uniform(d), (c * h * w,))
        x_fb = kernel.astype(self.dtype).T @ z_bd.astype(self.dtype).T + bias.astype(self.dtype)[:, None]
        return _swap(x_fb.reshape(c, h, w, -1))


def uniform(fan: int):
    """Initialiser U(-1/sqrt(fan), 1/sqrt(fan)), PyTorch's default for kernels and biases (its fan of Up is features * 16)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -1, 1) * fan**-0.5


def conv(x_bhwc, kernel, bias, stride=1):
    """See Conv. kernel [k, k, c, n] with k >= stride, bias [n]."""
    k = kernel.shape[0]
    if k < stride:
        raise ValueError(f"kernel {k} is smaller than stride {stride}: some pixels would be read by no output")
    if jax.default_backend() == "cpu":
        return _cpu(x_bhwc, kernel, bias, stride, (k - 1) // 2, False)
    return _library(x_bhwc, kernel, stride, (k - 1) // 2) + bias


def up(x_bhwc, kernel, bias):
    """See Up. The polyphase form: two taps a phase and axis, four phases, on the grid of corners between input pixels.

    Output row 2g - a reads only input rows g - 1 and g, through kernel rows a and 2 + a: so one convolution of 2x2 taps
    gives 4n channels on the (h + 1) x (w + 1) corners, whose phases are then interleaved. Same arithmetic as the transposed
    convolution; its gradients are those of a plain convolution, which every backend does well.
    """
    c, n = kernel.shape[2:]
    phases = kernel.reshape(2, 2, 2, 2, c, n).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * n)
    if jax.default_backend() == "cpu":
        return _cpu(x_bhwc, phases, bias, 1, 1, True)
    return _swap(_interleave(_swap(_library(x_bhwc, phases, 1, 1)))) + bias


def _library(x_bhwc, kernel, stride, pad):
    return lax.conv_general_dilated(x_bhwc, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC)


def _swap(x):
    """b, h, w, c <-> c, h, w, b."""
    return x.transpose(3, 1, 2, 0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _cpu(x_bhwc, kernel, bias, stride, pad, interleave):
    return _cpu_forward(x_bhwc, kernel, bias, stride, pad, interleave)[0]


def _cpu_forward(x_bhwc, kernel, bias, stride, pad, interleave):
    x = _swap(x_bhwc)
    k, _, c, n = kernel.shape
    if _narrow(kernel, stride):
        columns = x
        taps = _dot(kernel.transpose(0, 1, 3, 2).reshape(k * k * n, c), x).reshape(k, k, n, *x.shape[1:])
        y = sum(_shift(taps[i, j], (i - pad, j - pad), _size(x, k, 1, pad)) for i in range(k) for j in range(k))
    else:
        columns = _patches(x, k, stride, pad)
        y = _dot(kernel.reshape(-1, n).T, columns)
    y = _interleave(y) if interleave else y
    return _swap(y + bias[:, None, None, None]), (columns, kernel, x.shape)


def _cpu_backward(stride, pad, interleave, saved, dy_bhwc):
    columns, kernel, (c, h, w, b) = saved
    k, n = kernel.shape[0], kernel.shape[3]
    # Without the barrier XLA sums the bias gradient in the order b, h, w, c and copies dy for it.
    dy = lax.optimization_barrier(_swap(dy_bhwc))
    dbias = dy.sum((1, 2, 3))
    dy = _deinterleave(dy) if interleave else dy
    if _narrow(kernel, stride):
        taps = jnp.concatenate([_shift(dy, (pad - i, pad - j), (h, w)) for i in range(k) for j in range(k)])
        dx = _dot(kernel.transpose(2, 0, 1, 3).reshape(c, -1), taps)
        dkernel = _over_pixels(columns, taps).reshape(c, k, k, n).transpose(1, 2, 0, 3)
    else:
        dx = _gather(_dot(kernel.reshape(-1, n), dy).reshape(k, k, c, *dy.shape[1:]), stride, pad, (h, w))
        dkernel = _over_pixels(columns, dy).reshape(kernel.shape)
    return _swap(dx), dkernel, dbias


_cpu.defvjp(_cpu_forward, _cpu_backward)


def _narrow(kernel, stride):
    """Fewer channels out than in: multiply first and shift the (smaller) products, instead of gathering patches of the input."""
    return stride == 1 and kernel.shape[3] < kernel.shape[2]


def _size(x, k, stride, pad):
    return tuple((side + 2 * pad - k) // stride + 1 for side in x.shape[1:3])


def _dot(a, x):
    """a [m, k] times x [k, h, w, b] -> [m, h, w, b]. Behind the barrier a transposed `a` stays a small copy: folded into the product it is slower."""
    return lax.dot_general(lax.optimization_barrier(a), x, (((1,), (0,)), ((), ())))


def _over_pixels(a, b):
    """a [m, h, w, b] and b [n, h, w, b] -> [m, n], summed over rows, columns and batch.

    With one merged axis XLA takes both as they lie; with three it first copies `b` transposed (a tenth of a training step).
    But a merged axis cannot stay split over devices by its batch part, and would be gathered.
    """
    if jax.device_count() > 1:
        return lax.dot_general(a, b, (((1, 2, 3), (1, 2, 3)), ((), ())))
    return a.reshape(a.shape[0], -1) @ b.reshape(b.shape[0], -1).T


def _shift(x, start, size):
    """The window of x [c, h, w, b] from row and column `start` (may be negative) of `size`; zeros outside."""
    edges = [(-s, s + m - side, 0) for s, m, side in zip(start, size, x.shape[1:3])]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _patches(x, k, stride, pad):
    """x [c, h, w, b] -> [k*k*c, rows, columns, b], taps outermost."""
    (c, h, w, b), (rows, columns) = x.shape, _size(x, k, stride, pad)
    x = _shift(x, (-pad, -pad), (h + 2 * pad, w + 2 * pad))
    ends = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    return jnp.concatenate([lax.slice(x, (0, i, j, 0), (c, i + ends[0], j + ends[1], b), (1, stride, stride, 1)) for i in range(k) for j in range(k)])


def _gather(taps, stride, pad, size):
    """The transpose of _patches: taps [k, k, c, rows, columns, b] -> [c, *size, b].

    Each phase of the input (its row and column modulo the stride) is a short sum of shifted taps; the phases are interleaved at the end.
    """
    k, (h, w) = taps.shape[0], size
    grid = -(-h // stride), -(-w // stride)

    def phase(r, s):
        found = [_shift(taps[i, j], ((pad - i + r) // stride, (pad - j + s) // stride), grid)
                 for i in range(k) for j in range(k) if (i - pad - r) % stride == 0 and (j - pad - s) % stride == 0]
        return sum(found[1:], found[0])

    rows = [jnp.stack([phase(r, s) for s in range(stride)], 3) for r in range(stride)]
    full = jnp.stack(rows, 2).reshape(taps.shape[2], grid[0] * stride, grid[1] * stride, -1)
    return full[:, :h, :w]


def _interleave(y):
    """Phases on corners [4n, h + 1, w + 1, b] -> image [n, 2h, 2w, b]; phase (a, e) of corner (g, f) is pixel (2g - a, 2f - e)."""
    m, h, w, b = y.shape
    n, h, w = m // 4, h - 1, w - 1
    y = y.reshape(2, 2, n, h + 1, w + 1, b)
    rows = [jnp.stack([y[a, 0, :, a : a + h, :w], y[a, 1, :, a : a + h, 1:]], 3) for a in (0, 1)]
    return jnp.stack(rows, 2).reshape(n, 2 * h, 2 * w, b)


def _deinterleave(dy):
    """The transpose of _interleave."""
    h, w = dy.shape[1] // 2 + 1, dy.shape[2] // 2 + 1
    return jnp.concatenate([_shift(dy[:, a::2, e::2], (-a, -e), (h, w)) for a in (0, 1) for e in (0, 1)])
