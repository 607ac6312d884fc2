"""Entropies, Kullback-Leibler divergences, Gaussian codes, KL weights and importance-weighted bounds. All in nats.

A diagonal Gaussian is (mean, logvar), logvar the log of the variance, with the latent dimension last.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from vae_jax.config import UserError


def information(p):
    """Information -log p of events with probability p."""
    return -jnp.log(p)


def entropy(p_k):
    """H(p) = -sum p log p over the last axis, with 0 log 0 = 0."""
    return -jnp.sum(xlogy(p_k, p_k), -1)


def cross_entropy(p_k, q_k):
    """-sum p log q over the last axis; infinite where q = 0 < p."""
    return -jnp.sum(xlogy(p_k, q_k), -1)


def kl(p_k, q_k):
    """KL(p || q) = sum p log(p / q) over the last axis, at least 0; infinite where q = 0 < p. Not symmetric."""
    return jnp.sum(xlogy(p_k, p_k) - xlogy(p_k, q_k), -1)


def kl_normal(mean_bd, logvar_bd):
    """KL(N(mean, exp logvar) || N(0, 1)) of each dimension: [b, d]. Kingma & Welling 2014, appendix B."""
    return 0.5 * (jnp.square(mean_bd) + jnp.expm1(logvar_bd) - logvar_bd)


def kl_normals(mean_bd, logvar_bd, prior_mean, prior_logvar):
    """KL between two diagonal Gaussians, of each dimension: [b, d]; the second broadcasts."""
    gap = logvar_bd - prior_logvar
    return 0.5 * (jnp.square(mean_bd - prior_mean) * jnp.exp(-prior_logvar) + jnp.expm1(gap) - gap)


def kernel_distance(z_nd, prior_nd):
    """Squared maximum mean discrepancy of two sets of codes, a scalar, 0 where the sets are the same and a little more where only their laws are.

    Gaussian kernel exp(-|a - b|^2 / d^2), means over all pairs, a code with itself included
    (Gretton et al. 2012, equation 5; Tolstikhin et al. 2018 for autoencoders).
    """
    def similarity(a, b):
        squared = jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1) - 2 * a @ b.T
        return jnp.mean(jnp.exp(-jnp.maximum(squared, 0.0) / a.shape[-1] ** 2))

    return similarity(z_nd, z_nd) + similarity(prior_nd, prior_nd) - 2 * similarity(z_nd, prior_nd)


def log_normal(z_bd, mean, logvar):
    """log N(z; mean, exp logvar) summed over the last axis: [b]. Everything broadcasts; leading axes stay."""
    density = -0.5 * (jnp.square(z_bd - mean) * jnp.exp(-logvar) + logvar + math.log(2 * math.pi))
    return jnp.sum(density, -1)


def reparameterize(key, mean_bd, logvar_bd):
    """One draw z = mean + exp(logvar / 2) eps, eps ~ N(0, I), with gradient to both."""
    return mean_bd + jnp.exp(0.5 * logvar_bd) * jax.random.normal(key, mean_bd.shape, mean_bd.dtype)


def free_bits(kl_bd, per_dimension: float = 0.0, per_example: float = 0.0):
    """The KL term of the objective (a scalar, nats an example), flat below a floor so that it does not press a used code to nothing.

    per_dimension: sum over d of max(per_dimension, mean over the batch of kl[:, d]): a dimension may cost less in one example and more in
    another. Kingma et al. 2016 (IAF), appendix C.8, lambda. per_example: mean over the batch of max(per_example, sum over d of kl[b]).
    Neither: the plain mean. A Monte-Carlo KL [b] goes in as kl[:, None]. Raises UserError when both are set.
    """
    if per_dimension and per_example:
        raise UserError(f"Free bits are per_dimension={per_dimension} and per_example={per_example}; set one of them to 0.")
    if per_example:
        return jnp.mean(jnp.maximum(jnp.sum(kl_bd, -1), per_example))
    mean_d = jnp.mean(kl_bd, 0)
    return jnp.sum(jnp.maximum(mean_d, per_dimension) if per_dimension else mean_d)


def beta_weight(step, kind: str = "constant", beta: float = 1.0, warmup_steps: int = 0, cycles: int = 4, start: float = 0.0):
    """Weight of the KL at a step (an int or a traced one), exactly beta from warmup_steps on. A warm-up starts at 0; cooling starts above.

    constant: beta throughout. linear. sigmoid: a logistic curve of total width 10, stretched to 0..beta. cyclical: `cycles` equal
    parts of warmup_steps, each rising linearly in its first half and at beta in its second (Fu et al. 2019, R = 0.5).
    cooling: from `start` down (or up) to beta by a constant factor a step, so that a narrow code first finds the few directions that
    explain most, as PCA would, and bends to the finer ones later (deterministic annealing, Rose 1998).
    Raises UserError for an unknown kind or a warm-up without length.
    """
    if kind == "constant":
        return jnp.float32(beta)
    if kind not in ("linear", "sigmoid", "cyclical", "cooling"):
        raise UserError(f"KL weight schedule {kind!r} is not known; choose one of constant, linear, sigmoid, cyclical, cooling.")
    if warmup_steps < 1 or cycles < 1:
        raise UserError(f"The {kind} KL warm-up has warmup_steps={warmup_steps} and cycles={cycles}; both must be at least 1.")
    done = jnp.asarray(step, jnp.float32) / warmup_steps
    if kind == "cooling":
        if start <= 0 or beta <= 0:
            raise UserError(f"A cooling KL weight goes from warmup_from={start} to beta={beta}: both must be above 0.")
        return beta * (start / beta) ** jnp.clip(1.0 - done, 0.0, 1.0)
    if kind == "linear":
        rise = done
    elif kind == "sigmoid":
        rise = 0.5 + 0.5 * jnp.tanh(5.0 * (done - 0.5)) / math.tanh(2.5)
    else:
        rise = 2.0 * (done * cycles % 1.0)
    return beta * jnp.where(done >= 1.0, 1.0, jnp.where(done <= 0.0, 0.0, jnp.clip(rise, 0.0, 1.0)))


def log_mean_exp(log_w, axis: int = 0):
    """log of the mean of exp(log_w) over an axis. With log_w = log p(x, z_s) - log q(z_s | x) it is the bound of Burda et al. 2016
    (IWAE), section 3: at least the ELBO (the mean of log_w), at most log p(x) in expectation."""
    return jax.nn.logsumexp(log_w, axis) - math.log(log_w.shape[axis])


def importance_weights(log_w, axis: int = 0):
    """Self-normalised weights exp(log_w) / sum over an axis; 1 / sum of their squares is the effective number of draws."""
    return jax.nn.softmax(log_w, axis)
