"""Streaming layers: convolutions against SciPy, streams against whole signals, delays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from vae_jax.layers import convolutions_1d, streaming
from vae_jax.layers.streaming import Align, Conv, Signal, Up, Wait


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


class Residual(nn.Module):
    causal: bool

    @nn.compact
    def __call__(self, s):
        h = Conv(5, 3, dilation=3, causal=self.causal)(s.map(nn.relu))
        h = Conv(s.x.shape[-1], 1)(h.map(lambda x: nn.sigmoid(x) - 0.3))
        own, more = Align()(s, h)
        return own.replace(x=own.x + more.x)


class Net(nn.Module):
    """Down by 4 and 2, up by 2 and 4, with residual units and two branches: what RAVE is made of. Sigmoids make silence sound."""

    causal: bool

    @nn.compact
    def __call__(self, s):
        s = Conv(6, 7, causal=self.causal)(s)
        s = Residual(self.causal)(s)
        s = Conv(8, 9, stride=4, causal=self.causal)(s.map(nn.sigmoid))
        s = Conv(4, 4, stride=2, causal=self.causal)(s.map(jnp.tanh))
        s = Up(6, 2, causal=self.causal)(s.map(nn.sigmoid))
        s = Residual(self.causal)(s)
        s = Up(5, 4, causal=self.causal)(s.map(nn.sigmoid))
        long, short = Align()(Conv(3, 7, causal=self.causal)(s), Conv(3, 3, causal=self.causal)(s))
        return Wait(8)(long.replace(x=long.x * nn.sigmoid(short.x)))


def stream(module, variables, x_btc, sizes):
    """(the stream's output for blocks of these sizes, its delay)"""
    state, parts, at = streaming.start(module, variables, x_btc.shape[-1], len(x_btc), sizes[0]), [], 0
    step = jax.jit(lambda state, x: streaming.step(module, variables, state, x))
    for size in sizes:
        state, made = step(state, x_btc[:, at:at + size])
        parts.append(made.x)
        at += size
    return jnp.concatenate(parts, 1), made.delay


def snr(reference, other):
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    return 10 * np.log10(np.sum(reference**2) / (np.sum((reference - other) ** 2) + 1e-100))


@pytest.mark.parametrize("causal", [False, True])
def test_a_stream_is_the_whole_signal_late_by_its_delay(causal):
    module, x = Net(causal), noise(0, 2, 320, 3)
    variables = convolutions_1d.init(module, jax.random.key(0), Signal(x))
    whole = module.apply(variables, Signal(x)).x
    assert whole.shape == x.shape
    rng = np.random.default_rng(1)
    for _ in range(2):
        sizes = []
        while sum(sizes) < 320:
            sizes.append(8 * int(rng.integers(1, 5)))
        sizes[-1] -= sum(sizes) - 320
        made, delay = stream(module, variables, x, sizes)
        assert delay == 0 if causal else delay > 0 and delay % 8 == 0
        assert snr(whole[:, :320 - delay], made[:, delay:]) > 100


def test_a_causal_net_sees_nothing_ahead():
    module, x = Net(True), noise(2, 1, 64, 3)
    variables = convolutions_1d.init(module, jax.random.key(0), Signal(x))
    other = module.apply(variables, Signal(x.at[:, 40:].set(5.0))).x
    np.testing.assert_array_equal(np.asarray(module.apply(variables, Signal(x)).x)[:, :40], np.asarray(other)[:, :40])


@pytest.mark.parametrize("kernel,stride,dilation,causal", [(7, 1, 1, False), (3, 1, 9, False), (9, 4, 1, False), (4, 2, 1, True), (3, 1, 3, True)])
def test_convolution_against_scipy(kernel, stride, dilation, causal):
    x = noise(3, 1, 48, 2)
    module = Conv(3, kernel, stride, dilation, causal=causal)
    variables = convolutions_1d.init(module, jax.random.key(1), Signal(x))
    k = np.zeros(((kernel - 1) * dilation + 1, 2, 3))
    k[::dilation] = variables["params"]["kernel"]
    around = len(k) - stride
    before = around if causal else around - around // 2
    padded = np.pad(np.asarray(x[0], np.float64), ((before, around - before), (0, 0)))
    wanted = np.stack([sum(scipy.signal.correlate(padded[:, c], k[:, c, n], "valid") for c in range(2)) for n in range(3)], -1)[::stride]
    np.testing.assert_allclose(module.apply(variables, Signal(x)).x[0], wanted, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_up_is_a_transposed_convolution(ratio, causal):
    x = noise(4, 1, 10, 2)
    module = Up(3, ratio, causal=causal)
    variables = convolutions_1d.init(module, jax.random.key(1), Signal(x))
    phases, full = np.asarray(variables["params"]["kernel"], np.float64), np.zeros((11 * ratio, 3))
    kernel = phases[::-1].reshape(2, 2, ratio, 3).swapaxes(1, 2).reshape(2 * ratio, 2, 3)  # tap, channel in, channel out
    for i in range(10):
        full[i * ratio:(i + 2) * ratio] += np.einsum("c,kcn->kn", np.asarray(x[0, i], np.float64), kernel)
    first = 0 if causal else ratio // 2
    np.testing.assert_allclose(module.apply(variables, Signal(x)).x[0], full[first:first + 10 * ratio], atol=2e-6)
