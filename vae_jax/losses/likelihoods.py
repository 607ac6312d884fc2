"""log p(x|z) of pictures and other data in [0, 1], in nats, each with its normaliser. `get` picks one by name.

One convention for all: a decoder gives `outputs`, a dict with
    'x'          [b, ..., channels(C)]  its raw last layer for data of C channels (the last axis); what it means differs by likelihood
    'log_sigma'  scalar, or anything that broadcasts against x: only for the Gaussian with learned noise
Targets are floats in [0, 1] (uint8 / 255), [b, ..., C]. Everything is computed in float32 whatever the activations are.
"""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.config import UserError


class Likelihood(NamedTuple):
    """A family p(x|z), as pure functions. All but `channels` trace under jit.

    channels(C) -> channels the decoder gives for C data channels
    log_prob(outputs, x) -> [b], nats, summed over all other axes
    mean(outputs) -> [b, ..., C] the expected x, not clipped
    sample(outputs, key) -> [b, ..., C] one draw an example, not clipped
    floor(x) -> [b] the smallest -log_prob any outputs can reach for these targets; 0 where there is none to subtract
    bits: log_prob is the log of a probability of 8-bit (or `levels`) values, so that bits_per_dim makes sense
    """

    channels: Callable[[int], int]
    log_prob: Callable[[dict, jax.Array], jax.Array]
    mean: Callable[[dict], jax.Array]
    sample: Callable[[dict, jax.Array], jax.Array]
    floor: Callable[[jax.Array], jax.Array]
    bits: bool = False


def get(name: str, **settings) -> Likelihood:
    """A likelihood by name: bernoulli, continuous_bernoulli, gaussian, categorical, logistic_mixture; settings are those of its function.

    Raises UserError for an unknown name or an impossible setting.
    """
    table = {"bernoulli": bernoulli, "continuous_bernoulli": continuous_bernoulli, "gaussian": gaussian, "categorical": categorical,
             "logistic_mixture": logistic_mixture}
    if name not in table:
        raise UserError(f"Likelihood {name!r} is not known; choose one of {', '.join(table)}.")
    return table[name](**settings)


def bits_per_dim(nats, dims: int):
    """Nats of a whole example as bits for each of its `dims` values (pixels x channels)."""
    return nats / (dims * math.log(2.0))


def sigma_of_mse_weight(weight: float, dims: int) -> float:
    """The Gaussian noise level that a loss `weight * mean over dims of (x - mean)^2` stands for: sigma^2 = dims / (2 weight)."""
    return math.sqrt(dims / (2.0 * weight))


def bernoulli() -> Likelihood:
    """Binary data; 'x' holds logits. Grey targets are cross-entropy targets: their floor is the sum of their binary entropies."""

    def log_prob(outputs, x):
        logits = _rows(outputs["x"])
        return jnp.sum(_rows(x) * logits - softplus(logits), -1)

    def mean(outputs):
        return _shaped_like(outputs, jax.nn.sigmoid(_rows(outputs["x"])))

    def sample(outputs, key):
        return jax.random.bernoulli(key, mean(outputs)).astype(jnp.float32)

    def floor(x):
        x = _rows(x)
        return jnp.sum(-jax.scipy.special.xlogy(x, x) - jax.scipy.special.xlog1py(1.0 - x, -x), -1)

    return Likelihood(_same, log_prob, mean, sample, floor)


def continuous_bernoulli() -> Likelihood:
    """Grey data as a density on [0, 1]: p(x) = exp(l x) l / (e^l - 1), 'x' holds l, the logit of the paper's lambda.

    In logits the paper's normaliser 2 atanh(1 - 2 lambda) / (1 - 2 lambda) has no pole but the removable one at l = 0.
    The density is unbounded at targets 0 and 1, so the floor is 0. Loaiza-Ganem & Cunningham 2019.
    """

    def log_prob(outputs, x):
        logits = _rows(outputs["x"])
        return jnp.sum(_rows(x) * logits - _log_expm1_ratio(logits), -1)

    def mean(outputs):
        return _shaped_like(outputs, _expm1_ratio_slope(_rows(outputs["x"])))

    def sample(outputs, key):
        logits = _rows(outputs["x"])
        u = jax.random.uniform(key, logits.shape)
        slope = -jnp.abs(logits)  # the rising density is the falling one mirrored: exp never overflows
        near = slope > -1e-3
        safe = jnp.where(near, -1.0, slope)
        falling = jnp.where(near, u + 0.5 * slope * u * (1.0 - u), jnp.log1p(u * jnp.expm1(safe)) / safe)
        return _shaped_like(outputs, jnp.clip(jnp.where(logits > 0, 1.0 - falling, falling), 0.0, 1.0))

    return Likelihood(_same, log_prob, mean, sample, _no_floor)


def gaussian(sigma: float = 0.0, min_sigma: float = 1 / 256, squash: bool = False) -> Likelihood:
    """Normal data around 'x' with standard deviation sigma, in units of x (0..1).

    sigma > 0 is fixed; sigma = 0 is learned from outputs['log_sigma'] (one number, one a channel or one a pixel) and floored smoothly at
    min_sigma: log sigma = m + softplus(log_sigma - m), m = log min_sigma, so the gradient never dies. The default floor is one grey level:
    below it a density fits the quantisation of the data. squash: the mean is sigmoid('x') instead of 'x' itself.
    """
    if sigma < 0 or min_sigma <= 0:
        raise UserError(f"Gaussian likelihood: sigma={sigma} must be 0 (learned) or positive, and min_sigma={min_sigma} positive.")

    def centre(outputs):
        raw = _rows(outputs["x"])
        return jax.nn.sigmoid(raw) if squash else raw

    def log_scale(outputs):
        """A number, or [b, n] as the rows of x."""
        if sigma:
            return jnp.float32(math.log(sigma))
        if "log_sigma" not in outputs:
            raise ValueError("a Gaussian likelihood with learned sigma needs outputs['log_sigma']")
        raw = outputs["log_sigma"].astype(jnp.float32)
        raw = _rows(jnp.broadcast_to(raw, outputs["x"].shape)) if raw.ndim else raw
        return soft_floor(raw, math.log(min_sigma))

    def log_prob(outputs, x):
        scale = log_scale(outputs)
        scale, precision = jax.lax.optimization_barrier((scale, jnp.exp(-scale)))  # once, not again for every pixel
        density = -0.5 * jnp.square((_rows(x) - centre(outputs)) * precision) - scale - 0.5 * math.log(2 * math.pi)
        return jnp.sum(density, -1)

    def sample(outputs, key):
        rows = centre(outputs)
        return _shaped_like(outputs, rows + jnp.exp(log_scale(outputs)) * jax.random.normal(key, rows.shape))

    def floor(x):
        nats = math.log(sigma or min_sigma) + 0.5 * math.log(2 * math.pi)
        return jnp.full(x.shape[:1], nats * math.prod(x.shape[1:]), jnp.float32)

    return Likelihood(_same, log_prob, lambda outputs: _shaped_like(outputs, centre(outputs)), sample, floor)


def categorical(levels: int = 256) -> Likelihood:
    """A probability for each of `levels` grey values of each channel, on its own; 'x' holds their logits, channel by channel."""

    def split(outputs):
        x = outputs["x"]
        return x.astype(jnp.float32).reshape(*x.shape[:-1], -1, levels)

    def log_prob(outputs, x):
        level = jnp.round(x * (levels - 1)).astype(jnp.int32)[..., None]
        chances = jax.nn.log_softmax(split(outputs))
        return jnp.sum(jnp.take_along_axis(chances, level, -1).reshape(len(x), -1), -1)

    def mean(outputs):
        return jax.nn.softmax(split(outputs)) @ jnp.linspace(0.0, 1.0, levels)

    def sample(outputs, key):
        return jax.random.categorical(key, split(outputs)).astype(jnp.float32) / (levels - 1)

    return Likelihood(lambda channels: channels * levels, log_prob, mean, sample, _no_floor, bits=True)


def logistic_mixture(components: int = 10, levels: int = 256) -> Likelihood:
    """Discretised mixture of logistics over `levels` grey values; channels of a pixel share the component and feed each other linearly.

    'x' of C channels: rows [K logits, C x K means, C x K log scales, C(C-1)/2 x K coefficients] (3 K for grey, 10 K for RGB), means and
    scales in units of [-1, 1]. Given a component, the mean of channel c gains sum_{j<c} tanh(coefficient_cj) x_j. The first and last level
    own the tails. `mean` integrates a clipped logistic in place of its levels (right to half a level), with the earlier channels at their
    own mean. Salimans et al. 2017 (PixelCNN++), sections 2.1 and 2.2.
    """
    if components < 1 or levels < 2:
        raise UserError(f"Logistic mixture: components={components} must be at least 1 and levels={levels} at least 2.")
    half = 1.0 / (levels - 1)  # half the width of a bin, [-1, 1]

    def channels(c):
        return components * (1 + 2 * c + c * (c - 1) // 2)

    def split(outputs):
        """Logits [K, b, pixel], means and log scales [C, K, b, pixel], coefficients [C(C-1)/2, K, b, pixel]."""
        raw = outputs["x"].astype(jnp.float32)
        raw = raw.reshape(raw.shape[0], -1, raw.shape[-1] // components, components)
        raw = jax.lax.optimization_barrier(raw.transpose(2, 3, 0, 1))  # pixels last, for the reason given in _rows
        c = next((c for c in range(1, len(raw)) if channels(c) == len(raw) * components), None)
        if c is None:
            raise ValueError(f"{outputs['x'].shape[-1]} decoder channels are no logistic mixture of {components}; use channels(C)")
        scales = soft_floor(raw[1 + c : 1 + 2 * c], -7.0)  # exp(-7) is an eighth of a level of 256: sharper gains nothing
        return raw[0], raw[1 : 1 + c], scales, jnp.tanh(raw[1 + 2 * c :])

    def in_order(means, coefficients, value_of):
        """Channel by channel: the conditional mean of channel c given the values of the earlier ones, and then its own value."""
        found, values, row = [], [], 0
        for c, mean in enumerate(means):
            for j in range(c):
                mean = mean + coefficients[row] * values[j]
                row += 1
            found.append(mean)
            values.append(value_of(c, mean))
        return jnp.stack(found), jnp.stack(values)

    def picture(outputs, values_cbp):
        return jnp.moveaxis(values_cbp, 0, -1).reshape(*outputs["x"].shape[:-1], len(values_cbp))

    def log_prob(outputs, x):
        logits, means, log_scales, coefficients = split(outputs)
        x_cbp = jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), -1, 0)
        target = 2.0 * x_cbp - 1.0
        found, _ = in_order(means, coefficients, lambda c, _: target[c])
        offset = (target[:, None] - found) * jnp.exp(-log_scales)
        level = x_cbp[:, None] * (levels - 1)
        log_channel = logistic_bin(offset, math.log(2 * half) - log_scales, level < 0.5, level > levels - 1.5)
        log_component = jnp.sum(log_channel, 0) + jax.nn.log_softmax(logits, 0)
        return jnp.sum(jax.nn.logsumexp(log_component, 0), -1)

    def mean(outputs):
        logits, means, log_scales, coefficients = split(outputs)
        scales = jnp.exp(jnp.minimum(log_scales, 7.0))  # flatter than this, the two softplus cancel

        def clipped(c, centre):
            s = scales[c]
            return jnp.clip(centre, -1.0, 1.0) + s * (softplus(-jnp.abs(centre + 1.0) / s) - softplus(-jnp.abs(centre - 1.0) / s))

        _, values = in_order(means, coefficients, clipped)
        expected = jnp.sum(jax.nn.softmax(logits, 0) * values, 1)
        return picture(outputs, jnp.clip(0.5 + 0.5 * expected, 0.0, 1.0))  # rounding only

    def sample(outputs, key):
        logits, means, log_scales, coefficients = split(outputs)
        pick, draw = jax.random.split(key)
        chosen = jax.nn.one_hot(jax.random.categorical(pick, logits, 0), components, axis=0)
        means, log_scales, coefficients = ((v * chosen).sum(1) for v in (means, log_scales, coefficients))
        noise = jax.random.logistic(draw, means.shape) * jnp.exp(log_scales)

        def level(c, centre):
            unit = 0.5 + 0.5 * jnp.clip(centre + noise[c], -1.0, 1.0)
            return 2.0 * jnp.round(unit * (levels - 1)) / (levels - 1) - 1.0

        _, values = in_order(means, coefficients, level)
        return picture(outputs, 0.5 + 0.5 * values)

    return Likelihood(channels, log_prob, mean, sample, _no_floor, bits=True)


def logistic_bin(offset, log_width, first, last):
    """log of the share that a logistic has in a bin of width exp(log_width) around offset, both in units of its scale.

    The first bin of a line and the last own the tails. Finite, as are the gradients, however far the bin lies from the mean.
    """
    width = jnp.exp(log_width)
    upper, lower = offset + 0.5 * width, offset - 0.5 * width
    below, above = -softplus(-upper), -softplus(lower)  # log P(X < upper edge), log P(X > lower edge)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): exact in both tails, where the difference itself is 0
    inside = below + above + log_width + _log_expm1_ratio(-width)
    return jnp.where(first, below, jnp.where(last, above, inside))


def _rows(values):
    """[b, ...] as [b, n] in float32, and kept so.

    XLA on CPU computes exp and log element by element where the last axis has length 1, about 100x slower than along a row. Without the
    barrier it sees through the reshape and does the same.
    """
    return jax.lax.optimization_barrier(values.astype(jnp.float32).reshape(values.shape[0], -1))


def _shaped_like(outputs, rows):
    return rows.reshape(outputs["x"].shape)


def _same(channels):
    return channels


def _no_floor(x):
    return jnp.zeros(x.shape[:1], jnp.float32)


def soft_floor(value, low):
    """A value kept above `low`, smoothly: a hard maximum would have no gradient to come back by."""
    return low + softplus(value - low)


@jax.custom_jvp
def softplus(x):
    """log(1 + e^x). On CPU 4x faster than jax.nn.softplus, whose gradient takes two more exponentials."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvp(lambda primals, tangents: (softplus(*primals), tangents[0] * jax.nn.sigmoid(primals[0])))


@jax.custom_jvp
def _log_expm1_ratio(x):
    """log((e^x - 1) / x), 0 at 0: the log normaliser of exp(x t) on t in [0, 1]."""
    small = jnp.abs(x) < 0.1
    size = jnp.where(small, 1.0, jnp.abs(x))
    far = jnp.maximum(x, 0.0) + jnp.log(-jnp.expm1(-size) / size)
    near = jnp.where(small, x, 0.0)
    return jnp.where(small, near / 2 + near**2 / 24 - near**4 / 2880, far)


def _expm1_ratio_slope(x):
    """Derivative of _log_expm1_ratio, 1 / (1 - e^-x) - 1 / x: the mean of that density. In (0, 1), 1/2 at 0."""
    small = jnp.abs(x) < 0.5  # the two poles cancel: below this the series is the more exact
    near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    series = 0.5 + near / 12 - near**3 / 720 + near**5 / 30240
    tail = jnp.sign(far) / jnp.expm1(jnp.minimum(jnp.abs(far), 80.0))  # 80: the exponential and its gradient stay finite
    return jnp.where(small, series, jnp.where(far > 0, 1.0, 0.0) + tail - 1.0 / far)


_log_expm1_ratio.defjvp(lambda primals, tangents: (_log_expm1_ratio(*primals), tangents[0] * _expm1_ratio_slope(primals[0])))
