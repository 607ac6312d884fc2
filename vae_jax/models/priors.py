"""Priors p(z) over codes of d dimensions: standard normal, learned mixture of Gaussians, VampPrior. All densities in nats.

A `Prior` (from `get`) makes parameters once and a distribution once per step or evaluation; the distribution is a pytree of arrays that
the functions below take: log_prob, annealed_log_prob, sample, draw, responsibilities, shares, components, mean, kl. z may have leading axes,
[..., d], where it is not called z_bd.
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError
from vae_jax.losses import divergences

HIGHEST = jax.lax.Precision.HIGHEST  # an accelerator's short-mantissa products would drown the differences taken below
USED = 0.01  # mean responsibility for held-out codes above which a component counts as used
SHARING = 20  # rounds in which annealed components share a batch out evenly
MIN_SCALE = 1e-4  # smallest standard deviation, or diagonal entry of a Cholesky factor


class Prior(NamedTuple):
    """init(key) -> params;  dist(params, encode) -> Standard, Diagonal or Full. Only the VampPrior calls
    encode(pseudo [K, ...x shape]) -> (mean [K, d], logvar [K, d]), with gradient to the encoder."""

    init: Callable[[jax.Array], dict]
    dist: Callable[..., Any]


class Standard(NamedTuple):
    """N(0, I); the array only carries the size."""

    zero_d: jax.Array


class Diagonal(NamedTuple):
    """sum_k exp(log_weight_k) N(mean_k, diag exp(logvar_k))"""

    log_weight_k: jax.Array
    mean_kd: jax.Array
    logvar_kd: jax.Array


class Full(NamedTuple):
    """sum_k exp(log_weight_k) N(mean_k, L_k L_k^T), with L_k and its inverse lower triangular"""

    log_weight_k: jax.Array
    mean_kd: jax.Array
    cholesky_kdd: jax.Array
    inverse_kdd: jax.Array


def get(kind: str, latent: int, components: int = 1, covariance: str = "diagonal", x_shape: tuple[int, ...] = ()) -> Prior:
    """The prior of a `latent`-dimensional code: standard, mixture or vamp.

    mixture: `components` Gaussians with learned weights, means and covariance ('diagonal', or 'full' by Cholesky factor: strictly lower
    part plus diagonal, at least 1e-4), seen through one learned shift and stretch of the axes, so that they follow together a code that
    moves as a whole; it begins close to N(0, I), with one component at it. vamp: equal weights on the encoder's
    posteriors of `components` learned pseudo-inputs of shape x_shape, clipped to [0, 1] (Tomczak & Welling 2018). Raises UserError for
    what it does not know.
    """
    if kind not in ("standard", "mixture", "vamp"):
        raise UserError(f"Prior {kind!r} is not known; choose one of standard, mixture, vamp.")
    if covariance not in ("diagonal", "full"):
        raise UserError(f"Prior covariance {covariance!r} is not known; choose diagonal or full.")
    if components < 1:
        raise UserError(f"A prior of {components} components is empty; give at least 1.")
    if kind == "standard":
        return Prior(lambda key: {}, lambda params, encode=None: Standard(jnp.zeros(latent)))
    if kind == "vamp":
        return _vamp(components, x_shape)
    return _mixture(components, latent, covariance == "full")


def _mixture(components, latent, full):
    # Components that begin far apart starve: 20 epochs of MNIST, d = 40, K = 500 left 20 in use at spread 1 and 160 at 0.3, 1.5 nats better
    spread = 0.3 if components > 1 else 0.0

    def init(key):
        one = math.log(math.expm1(1.0))
        params = {"logits": jnp.zeros(components), "mean": spread * jax.random.normal(key, (components, latent)),
                  "scale": jnp.full((components, latent), one), "shift": jnp.zeros(latent),
                  "stretch": jnp.full(latent, math.log(math.expm1(1.0 - MIN_SCALE)))}
        return params | ({"lower": jnp.zeros((components, latent, latent))} if full else {})  # only below the diagonal is used

    def dist(params, encode=None):
        log_weight = jax.nn.log_softmax(params["logits"])
        stretch = jax.nn.softplus(params["stretch"]) + MIN_SCALE
        mean, scale = params["shift"] + stretch * params["mean"], jnp.maximum(stretch * jax.nn.softplus(params["scale"]), MIN_SCALE)
        if not full:
            return Diagonal(log_weight, mean, 2.0 * jnp.log(scale))
        cholesky = stretch[:, None] * jnp.tril(params["lower"], -1) + scale[..., None] * jnp.eye(latent)
        return Full(log_weight, mean, cholesky, _inverse(cholesky))

    return Prior(init, dist)


def _vamp(components, x_shape):
    def init(key):
        return {"pseudo": 0.05 + 0.01 * jax.random.normal(key, (components, *x_shape))}

    def dist(params, encode):
        mean, logvar = encode(jnp.clip(params["pseudo"], 0.0, 1.0))
        return Diagonal(jnp.full(components, -math.log(components)), mean, logvar)

    return Prior(init, dist)


def log_prob(dist, z):
    """log p(z): [...] of z [..., d]."""
    if isinstance(dist, Standard):
        return divergences.log_normal(z, dist.zero_d, dist.zero_d)
    return jax.nn.logsumexp(_joint(dist, z), -1)


def annealed_log_prob(dist, z_bd, temperature):
    """A lower bound [b] on log p(z) of a mixture, exact at temperature 1: sum_k r_k (log weight_k N_k(z) - log r_k) holds for any responsibilities r.

    Above 1, r are softened, p(k | z)^(1 / temperature), and share the batch out evenly over the components; at 1 they are exact at once. They carry
    no gradient. Training that begins hot and cools to 1 (deterministic annealing: Ueda & Nakano 1998) leaves each component codes of its own; begun
    cold, the first to move takes all.
    """
    # Of soft responsibilities every component's density counts, so all are computed from differences
    joint_bk = _joint(dist, z_bd, _joint_by_differences if isinstance(dist, Diagonal) else _joint_full)
    log_r_bk = _even(jax.lax.stop_gradient(joint_bk), temperature)
    return jnp.sum(jnp.exp(log_r_bk) * (joint_bk - log_r_bk), -1)


def _even(joint_bk, temperature):
    """Log responsibilities; above temperature 1 they are scaled by component towards b / K for each (Sinkhorn): in SHARING rounds nearly there
    while hot, less where densities lie far apart."""
    soft = joint_bk / temperature

    def share(offset_k, _):
        return offset_k - jax.nn.logsumexp(jax.nn.log_softmax(soft + offset_k), 0), None

    def evened():
        return jax.lax.scan(share, jnp.zeros(soft.shape[1]), None, length=SHARING)[0]

    return jax.nn.log_softmax(soft + jax.lax.cond(temperature > 1.0, evened, lambda: jnp.zeros(soft.shape[1])))


def responsibilities(dist, z):
    """p(component | z): [..., K]; they sum to 1."""
    if isinstance(dist, Standard):
        return jnp.ones((*z.shape[:-1], 1))
    return jax.nn.softmax(_joint(dist, z), -1)


def shares(dist, z_nd, chunk: int = 1000) -> np.ndarray:
    """Mean responsibility [K] of each component for codes [n, d], in chunks so that [n, K, d] is never held."""
    z = np.asarray(z_nd, np.float32)
    return np.concatenate([responsibilities(dist, z[i:i + chunk]) for i in range(0, len(z), chunk)]).mean(0)


def kl(dist, mean_bd, logvar_bd, z_bd, temperature=None):
    """KL(q || p) of diagonal Gaussians q = (mean, logvar): ([b], [b, d]), or ([b], None) where it does not fall into dimensions.

    Closed for one Gaussian; for mixtures the unbiased single-draw estimate log q(z|x) - log p(z), z drawn from q with gradient; with a
    temperature an upper bound on that, by `annealed_log_prob`.
    """
    if not isinstance(dist, Standard) and len(dist.log_weight_k) > 1:
        log_pz = log_prob(dist, z_bd) if temperature is None else annealed_log_prob(dist, z_bd, temperature)
        return divergences.log_normal(z_bd, mean_bd, logvar_bd) - log_pz, None
    if isinstance(dist, Full):
        inverse_dd, diagonal_d = dist.inverse_kdd[0], jnp.diagonal(dist.cholesky_kdd[0])
        apart_bd = jnp.matmul(mean_bd - dist.mean_kd[0], inverse_dd.T, precision=HIGHEST)
        spread_b = jnp.matmul(jnp.exp(logvar_bd), jnp.sum(inverse_dd**2, 0), precision=HIGHEST)
        return 0.5 * (spread_b + jnp.sum(apart_bd**2 - 1.0 - logvar_bd, -1)) + jnp.sum(jnp.log(diagonal_d)), None
    if isinstance(dist, Standard):
        kl_bd = divergences.kl_normal(mean_bd, logvar_bd)
    else:
        kl_bd = divergences.kl_normals(mean_bd, logvar_bd, dist.mean_kd, dist.logvar_kd)
    return jnp.sum(kl_bd, -1), kl_bd


def sample(dist, key, n: int):
    """n codes: [n, d]."""
    pick, noise = jax.random.split(key)
    index = jnp.zeros(n, jnp.int32) if isinstance(dist, Standard) else jax.random.categorical(pick, dist.log_weight_k, shape=(n,))
    return draw(dist, noise, index)


def draw(dist, key, index_n):
    """One code from each of the components named: [n, d]."""
    if isinstance(dist, Standard):
        return jax.random.normal(key, (index_n.shape[0], len(dist.zero_d)))
    mean = dist.mean_kd[index_n]
    noise = jax.random.normal(key, mean.shape)
    if isinstance(dist, Diagonal):
        return mean + jnp.exp(0.5 * dist.logvar_kd[index_n]) * noise
    return mean + jnp.einsum("nij,nj->ni", dist.cholesky_kdd[index_n], noise, precision=HIGHEST)


def components(dist):
    """Weight [K], mean [K, d] and marginal standard deviation [K, d] of each component."""
    if isinstance(dist, Standard):
        return jnp.ones(1), dist.zero_d[None], jnp.ones((1, len(dist.zero_d)))
    if isinstance(dist, Diagonal):
        return jnp.exp(dist.log_weight_k), dist.mean_kd, jnp.exp(0.5 * dist.logvar_kd)
    return jnp.exp(dist.log_weight_k), dist.mean_kd, jnp.sqrt(jnp.sum(jnp.square(dist.cholesky_kdd), -1))


def mean(dist):
    """Of the whole prior: [d]."""
    weight_k, mean_kd, _ = components(dist)
    return jnp.matmul(weight_k, mean_kd, precision=HIGHEST)


def _joint(dist, z, form=None):
    """log weight_k + log N_k(z): [..., K]."""
    z_bd = z.reshape(-1, z.shape[-1])
    joint_bk = (form or (_joint_full if isinstance(dist, Full) else _joint_diagonal))(dist, z_bd)
    return joint_bk.reshape(*z.shape[:-1], -1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _joint_diagonal(dist, z_bd):
    """(z - m)^2 / s^2 multiplied out to one matrix product, several times faster than [b, K, d] differences.

    Its terms cancel where a component is narrow and near, at a cost of many nats when s is 1/100 of |m|. That matters for the component
    that dominates z, so this one alone is computed again from the difference.
    """
    log_weight, mean, logvar = dist
    centre = jax.lax.stop_gradient(jnp.mean(mean, 0))
    z_from, mean_from, precision = z_bd - centre, mean - centre, jnp.exp(-logvar)
    linear = mean_from * precision
    left, right = jnp.concatenate([z_from * z_from, -2.0 * z_from], -1), jnp.concatenate([precision, linear], -1)
    joint = log_weight - 0.5 * (jnp.matmul(left, right.T, precision=HIGHEST) + jnp.sum(logvar + mean_from * linear, -1))
    ids = jnp.arange(len(log_weight))
    values = jax.lax.stop_gradient(joint)
    best = jnp.min(jnp.where(values == jnp.max(values, -1, keepdims=True), ids, len(ids) - 1), -1)  # several times faster than argmax
    difference = z_bd - mean[best]
    exact = log_weight[best] - 0.5 * jnp.sum(jnp.square(difference) * precision[best] + logvar[best], -1)
    return jnp.where(ids == best[:, None], exact[:, None], joint)


def _joint_by_differences(dist, z_bd):
    """The same without cancellation, by [b, K, d] differences."""
    log_weight, mean, logvar = dist
    return log_weight - 0.5 * jnp.sum(jnp.square(z_bd[:, None] - mean) * jnp.exp(-logvar) + logvar, -1)


def _joint_full(dist, z_bd):
    whitened = jnp.einsum("kij,kbj->kbi", dist.inverse_kdd, z_bd - dist.mean_kd[:, None], precision=HIGHEST)
    log_det = jnp.sum(jnp.log(jnp.diagonal(dist.cholesky_kdd, axis1=1, axis2=2)), -1)
    return dist.log_weight_k - log_det - 0.5 * jnp.sum(jnp.square(whitened), -1).T


@jax.custom_jvp
def _inverse(lower_kdd):
    """Inverse of lower triangular matrices, row by row for all k at once.

    On CPU XLA's batched triangular_solve took between 0.3 and 400 ms for the same call, and once never came back.
    """
    d = lower_kdd.shape[-1]
    diagonal = jnp.diagonal(lower_kdd, axis1=-2, axis2=-1)
    unit = jnp.tril(lower_kdd, -1) / diagonal[..., None]

    def row(found, i):
        line = jax.nn.one_hot(i, d) - jnp.einsum("kj,kji->ki", unit[:, i], found, precision=HIGHEST)
        return found.at[:, i].set(line), None

    found, _ = jax.lax.scan(row, jnp.zeros_like(lower_kdd), jnp.arange(d))
    return found / diagonal[..., None, :]


def _inverse_jvp(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -jnp.matmul(jnp.matmul(inverse, tangents[0], precision=HIGHEST), inverse, precision=HIGHEST)


_inverse.defjvp(_inverse_jvp)
