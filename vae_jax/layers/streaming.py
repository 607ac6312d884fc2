"""Layers of sequences that run on a whole signal or block by block, from one definition and one set of parameters.

A network maps a `Signal` to a `Signal`. Of a whole signal, convolutions see zeros before its beginning and behind its end. In a stream a layer keeps
the end of what it has seen in the Linen collection "stream"; a layer that looks ahead answers late instead, by `delay` frames, which is computed here
from the kernel sizes: a strided layer waits until its frames fall on the grid of the whole signal, parallel branches wait for each other, and frames
from before the beginning count as zeros. So a stream, late by its delay, equals the whole-signal form for blocks of any size that is a multiple of
the stride. `start` and `step` make a pair of pure functions of a module, or of a method of one.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vae_jax.layers import convolutions_1d


@flax.struct.dataclass
class Signal:
    """x [b, t, c], a whole signal, or (position given) the block of a stream that begins `position` frames after the stream did.

    A whole signal may be a stretch of a longer one, from that one's frame `first` on, a multiple of all strides: only numbers of frames depend on it.
    """

    x: jax.Array
    position: Any = None  # int32 []
    delay: int = flax.struct.field(pytree_node=False, default=0)  # frames by which a stream is behind the whole signal
    first: Any = 0  # int32 []

    def frames(self):
        """Number in the whole signal of each frame, int32 [t]; negative before its beginning."""
        return jnp.arange(self.x.shape[1], dtype=jnp.int32) + (self.first if self.position is None else self.position - self.delay)

    def map(self, function) -> "Signal":
        """`function` of x, frame by frame."""
        return self.replace(x=function(self.x))


class Conv(nn.Module):
    """Convolution without bias: x [b, t, c] -> [b, t / stride, features]. Parameter: kernel [kernel, c / groups, features].

    Frame i sees dilation (kernel - 1) + 1 frames of x around its own `stride` ones (one more to the left where that is uneven); causal: up to its
    own last one.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, s: Signal) -> Signal:
        inputs = s.x.shape[-1] // self.groups
        kernel = self.param("kernel", convolutions_1d.bound(self.kernel * inputs), (self.kernel, inputs, self.features))
        return convolve(self, s, kernel.astype(self.dtype), self.stride, self.dilation, self.groups, self.causal)


class Up(nn.Module):
    """Transposed convolution of stride `ratio` and 2 ratio taps, without bias: x [b, t, c] -> [b, t ratio, features].

    Parameter: kernel [2, c, ratio features], see `convolutions_1d.up`. Of the (t + 1) ratio frames of the full result, ratio // 2 are left out at the
    beginning; causal: none.
    """

    features: int
    ratio: int
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, s: Signal) -> Signal:
        r, t = self.ratio, s.x.shape[1]
        kernel = self.param("kernel", convolutions_1d.bound(2 * s.x.shape[-1]), (2, s.x.shape[-1], r * self.features))
        ahead = 0 if self.causal else r // 2
        x, _ = _extend(self, s, 1, int(s.position is None and ahead > 0))
        y = convolutions_1d.up(x.astype(self.dtype), kernel.astype(self.dtype), r)
        if s.position is None:
            return s.replace(x=y[:, ahead:ahead + t * r], first=s.first * r)
        return Signal(y, s.position * r, s.delay * r + ahead)


class Align(nn.Module):
    """Signals of one rate, each held back in a stream until the one that is latest."""

    @nn.compact
    def __call__(self, *signals: Signal) -> tuple[Signal, ...]:
        latest = max(s.delay for s in signals)
        return tuple(_hold(self, f"held_{i}", s, latest - s.delay) for i, s in enumerate(signals))


class Wait(nn.Module):
    """A stream held back until its delay is a multiple of `multiple` frames."""

    multiple: int

    @nn.compact
    def __call__(self, s: Signal) -> Signal:
        return _hold(self, "held", s, -s.delay % self.multiple)


def convolve(module: nn.Module, s: Signal, kernel_kcn, stride: int = 1, dilation: int = 1, groups: int = 1, causal: bool = False) -> Signal:
    """See Conv; for kernels that are no parameters. `module` keeps the state of the stream, of one convolution."""
    around = (kernel_kcn.shape[0] - 1) * dilation + 1 - stride
    if around < 0:  # it skips frames: the last ones of each group
        kernel_kcn, around = jnp.pad(kernel_kcn, ((0, -around), (0, 0), (0, 0))), 0
    after = 0 if causal else around // 2
    x, delay = _extend(module, s, around - after, after, stride)
    y = convolutions_1d.conv(x.astype(kernel_kcn.dtype), kernel_kcn, stride, dilation, groups)
    return s.replace(x=y, first=s.first // stride) if s.position is None else Signal(y, s.position // stride, delay)


def start(module: nn.Module, variables, channels: int, batch: int, block: int, *more, method=None):
    """The state of a stream of `module` before its first block: {"position": 0, "stream": zeros}. block: any size that it takes.

    method: a function of the module, a Signal and `more` that is streamed in place of the module's own. Shapes of variables and `more` are enough.
    """
    shapes = _shapes(module, variables, channels, batch, block, more, method)[1]
    return {"position": jnp.int32(0), "stream": jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes.get("stream", {}))}


def step(module: nn.Module, variables, state, x_btc, *more, method=None) -> tuple[Any, Signal]:
    """(the state behind the block x_btc, what `module`, or a method of it, makes of it)"""
    made, changed = module.apply({**variables, "stream": state["stream"]}, Signal(x_btc, state["position"]), *more, method=method, mutable=["stream"])
    return {"position": state["position"] + x_btc.shape[1], "stream": changed.get("stream", {})}, made


def delay(module: nn.Module, variables, channels: int, block: int, *more, method=None) -> int:
    """Frames of what a stream gives by which it is behind the whole signal; see `start`. Nothing is run."""
    return _shapes(module, variables, channels, 1, block, more, method)[0].delay


def _shapes(module, variables, channels, batch, block, more, method):
    first = Signal(jax.ShapeDtypeStruct((batch, block, channels), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    return jax.eval_shape(lambda v, s, m: module.apply(v, s, *m, method=method, mutable=["stream"]), variables, first, more)


def _extend(module, s, before, after, stride=1):
    """x with what a layer needs on both sides, and the delay of the layer's output in its own frames.

    In a stream x[stream frame] is the whole signal's frame - delay, so the layer's frame i, which needs x up to stride (i + 1) - 1 + after,
    can be made `after` frames later, and must fall on the end of a group of `stride` frames.
    """
    if s.position is None:
        return jnp.pad(s.x, ((0, 0), (before, after), (0, 0))), 0
    wait = -(s.delay + after) % stride
    x = _remember(module, "past", s, before + after + wait)
    return x, (s.delay + after + wait) // stride


def _hold(module, name, s, frames):
    if s.position is None or not frames:
        return s
    x = _remember(module, name, s, frames)
    return s.replace(x=x[:, :s.x.shape[1]], delay=s.delay + frames)


def _remember(module, name, s, frames):
    """A block behind the `frames` frames before it, zeros where the whole signal has not begun; the last ones are kept for the next block."""
    x = s.x if not s.delay else jnp.where(s.frames()[:, None] >= 0, s.x, 0)
    if not frames:
        return x
    past = module.variable("stream", name, jnp.zeros, (x.shape[0], frames, x.shape[2]), x.dtype)
    x = jnp.concatenate([past.value, x], 1)
    past.value = x[:, -frames:]
    return x
