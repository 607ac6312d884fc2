"""Priors against SciPy, also far out and where products cancel; estimated and closed KL; draws; gradients to parameters and encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from vae_jax.config import UserError
from vae_jax.losses import divergences
from vae_jax.models import priors

log_prob, responsibilities, components, kl, draw, inverse = (jax.jit(f) for f in (
    priors.log_prob, priors.responsibilities, priors.components, priors.kl, priors.draw, priors._inverse))
annealed = jax.jit(priors.annealed_log_prob)
sample = jax.jit(priors.sample, static_argnums=2)
reparameterize = jax.jit(divergences.reparameterize)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mixture(rng, k, d, covariance, spread=1.0):
    """A mixture with every parameter off its start."""
    prior = priors.get("mixture", d, components=k, covariance=covariance)
    params = prior.init(jax.random.key(0))
    params = jax.tree.map(lambda v: v + spread * jnp.float32(rng.normal(0, 0.7, v.shape)), params)
    return make(prior, params)


def make(prior, params):
    return jax.jit(lambda p: prior.dist(p, None))(params)


def reference(dist, z):
    """log weight_k + log N_k(z), [b, K], in float64."""
    weights, means = np.float64(dist.log_weight_k), np.float64(dist.mean_kd)
    if isinstance(dist, priors.Diagonal):
        sigma = np.exp(np.float64(dist.logvar_kd) / 2)
        return weights + stats.norm.logpdf(np.float64(z)[:, None], means, sigma).sum(-1)
    cholesky = np.float64(dist.cholesky_kdd)
    densities = [stats.multivariate_normal(m, c @ c.T).logpdf(np.float64(z)) for m, c in zip(means, cholesky)]
    return weights + np.stack(densities, -1)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_mixture_against_scipy(rng, covariance):
    dist = mixture(rng, 6, 5, covariance)
    z = np.float32(np.concatenate([rng.normal(0, 1, (20, 5)), rng.normal(0, 30, (10, 5)), rng.normal(0, 1e4, (5, 5))]))
    expected = reference(dist, z)
    np.testing.assert_allclose(log_prob(dist, z), special.logsumexp(expected, 1), rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(responsibilities(dist, z)[:30], special.softmax(expected, 1)[:30], atol=2e-3)
    np.testing.assert_allclose(jnp.exp(dist.log_weight_k).sum(), 1, rtol=1e-6)
    stacked = log_prob(dist, z.reshape(5, 7, 5))
    np.testing.assert_allclose(stacked.reshape(-1), log_prob(dist, z), rtol=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_annealing_bounds_the_density_and_shares_evenly(rng, covariance):
    dist, z = mixture(rng, 6, 5, covariance), jnp.float32(rng.normal(0, 2, (60, 5)))
    exact, soft = (jax.value_and_grad(lambda z, f=f: f(z).sum()) for f in (lambda z: log_prob(dist, z), lambda z: annealed(dist, z, 1.0)))
    for one, other in zip(exact(z), soft(z)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    joint = reference(dist, z)
    log_r = np.float64(priors._even(jnp.float32(joint), 8.0))
    np.testing.assert_allclose(np.exp(log_r).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_r).sum(0), 10, rtol=0.15)
    scaled = log_r - joint / 8.0  # but for a constant a row and one a column
    np.testing.assert_allclose(scaled - scaled[:1], (scaled - scaled[:1])[:, :1].repeat(6, 1), atol=1e-3)
    np.testing.assert_allclose(annealed(dist, z, 8.0), (np.exp(log_r) * (joint - log_r)).sum(1), rtol=1e-4, atol=1e-3)
    assert all(np.all(annealed(dist, z, t) <= log_prob(dist, z) + 1e-4) for t in (1.0, 3.0, 40.0))
    mean, logvar = jnp.zeros((60, 5)), jnp.full((60, 5), -1.0)
    apart = kl(dist, mean, logvar, z, 8.0)[0] - kl(dist, mean, logvar, z)[0]
    np.testing.assert_allclose(apart, log_prob(dist, z) - annealed(dist, z, 8.0), atol=1e-3)


def test_annealed_components_all_find_work(rng):
    """Six clusters in 32 dimensions, far from where the prior begins: begun cold, some of six components starve; cooled, none does."""
    centres = jnp.float32(rng.normal(0, 1, (6, 32)))
    prior, optimizer, steps = priors.get("mixture", 32, components=6), optax.adam(0.01), 1000

    def codes(key):
        pick, noise = jax.random.split(key)
        return 3.0 + centres[jax.random.randint(pick, (64,), 0, 6)] + 0.5 * jax.random.normal(noise, (64, 32))

    @functools.partial(jax.jit, static_argnums=0)
    def fit(cooled):
        def loss(params, t):
            dist, z = prior.dist(params), codes(jax.random.key(t))
            temperature = divergences.beta_weight(t, "cooling", 1.0, 600, start=32)
            return -jnp.mean(priors.annealed_log_prob(dist, z, temperature) if cooled else priors.log_prob(dist, z))

        def step(carry, t):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, t), state)
            return (optax.apply_updates(params, updates), state), None

        params = prior.init(jax.random.key(1))
        return prior.dist(jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0])

    shares = {cooled: priors.shares(fit(cooled), codes(jax.random.key(steps))) for cooled in (False, True)}
    assert (shares[False] > priors.USED).sum() < 6 and (shares[True] > priors.USED).sum() == 6, shares


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.001])
def test_narrow_components_do_not_cancel(rng, scale):
    """At scale 0.001 the multiplied-out square alone is wrong by several nats."""
    means = jnp.float32(rng.normal(0, 1, (50, 40)))
    dist = priors.Diagonal(jnp.full(50, -np.log(50)), means, jnp.full((50, 40), 2 * np.log(scale)))
    z = means + np.float32(scale * rng.normal(0, 1, means.shape))
    np.testing.assert_allclose(log_prob(dist, z), special.logsumexp(reference(dist, z), 1), atol=1e-3)
    gradient = jax.jit(jax.grad(lambda z: log_prob(dist, z).sum()))(z)
    np.testing.assert_allclose(gradient * scale, (means - z) / scale, atol=1e-3)


def test_full_covariance_with_a_narrow_direction(rng):
    dist = mixture(rng, 3, 6, "full", spread=0.3)
    cholesky = dist.cholesky_kdd.at[:, 2, 2].set(1e-3)
    dist = dist._replace(cholesky_kdd=cholesky, inverse_kdd=inverse(cholesky))
    z = np.float32(sample(dist, jax.random.key(1), 40))
    np.testing.assert_allclose(log_prob(dist, z), special.logsumexp(reference(dist, z), 1), atol=5e-3)


def test_inverse_of_triangular_matrices_and_its_gradient(rng):
    lower = np.tril(rng.normal(0, 0.3, (4, 11, 11)), -1) + np.exp(rng.normal(0, 0.5, (4, 11)))[..., None] * np.eye(11)
    found = np.asarray(inverse(jnp.float32(lower)))
    np.testing.assert_allclose(found, np.linalg.inv(lower), atol=1e-5)
    assert np.all(np.triu(found, 1) == 0)
    weights = rng.normal(0, 1, lower.shape)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(inverse(v) * jnp.float32(weights))))(jnp.float32(lower))
    transposed = np.linalg.inv(lower).swapaxes(1, 2)
    np.testing.assert_allclose(gradient, -transposed @ weights @ transposed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_covariance_is_positive_definite_whatever_the_parameters(rng, covariance):
    prior = priors.get("mixture", 4, components=3, covariance=covariance)
    params = jax.tree.map(lambda v: jnp.float32(rng.normal(0, 50, v.shape)), prior.init(jax.random.key(0)))
    dist = make(prior, params)
    if covariance == "full":
        diagonal = np.diagonal(dist.cholesky_kdd, axis1=1, axis2=2)
        assert np.all(np.triu(dist.cholesky_kdd, 1) == 0)
        assert all(np.linalg.eigvalsh(np.float64(c) @ np.float64(c).T).min() > 0 for c in dist.cholesky_kdd)
    else:
        diagonal = np.exp(np.asarray(dist.logvar_kd) / 2)
    assert diagonal.min() > 0.99e-4


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_fresh_component_is_the_standard_normal(rng, covariance):
    prior = priors.get("mixture", 3, components=1, covariance=covariance)
    dist, z = make(prior, prior.init(jax.random.key(0))), jnp.float32(rng.normal(0, 2, (50, 3)))
    standard = priors.get("standard", 3).dist({}, None)
    np.testing.assert_allclose(log_prob(dist, z), stats.norm.logpdf(z).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(log_prob(standard, z), stats.norm.logpdf(z).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_estimated_kl_agrees_with_the_closed_one(covariance):
    """The mixture of one, and of two copies of one, against N(0, I): the single-draw estimate's mean is the closed KL."""
    n, mean, logvar = 20000, jnp.array([0.5, -1.0, 0.0]), jnp.array([-1.0, 0.3, -3.0])
    mean_bd, logvar_bd = jnp.broadcast_to(mean, (n, 3)), jnp.broadcast_to(logvar, (n, 3))
    z = reparameterize(jax.random.key(4), mean_bd, logvar_bd)
    closed, per_dim = kl(priors.get("standard", 3).dist({}, None), mean_bd, logvar_bd, z)
    np.testing.assert_allclose(per_dim[0], 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar), rtol=1e-5)
    np.testing.assert_allclose(closed, per_dim.sum(-1), rtol=1e-6)
    prior = priors.get("mixture", 3, components=2, covariance=covariance)
    params = prior.init(jax.random.key(0)) | {"mean": jnp.zeros((2, 3))}
    estimate, none = kl(make(prior, params), mean_bd, logvar_bd, z)
    estimate = np.float64(estimate)
    assert none is None and estimate.std() > 0.1
    assert abs(estimate.mean() - float(closed[0])) < 4 * estimate.std() / np.sqrt(n)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_kl_to_one_component_is_closed(rng, covariance):
    dist, n = mixture(rng, 1, 3, covariance), 20000
    mean, logvar = jnp.broadcast_to(jnp.array([0.2, -0.4, 1.0]), (n, 3)), jnp.full((n, 3), -1.0)
    closed, per_dim = kl(dist, mean, logvar, mean)
    assert per_dim is None if covariance == "full" else per_dim.shape == (n, 3)
    assert np.ptp(closed) < 1e-5  # no draw enters
    z = reparameterize(jax.random.key(4), mean, logvar)
    estimate = np.float64(divergences.log_normal(z, mean, logvar) - log_prob(dist, z))
    assert abs(estimate.mean() - float(closed[0])) < 4 * estimate.std() / np.sqrt(n)


@pytest.mark.parametrize("kind, covariance", [("standard", "diagonal"), ("mixture", "diagonal"), ("mixture", "full")])
def test_draws_have_the_moments_of_the_distribution(rng, kind, covariance):
    n = 40000
    dist = priors.get(kind, 3).dist({}, None) if kind == "standard" else mixture(rng, 4, 3, covariance)
    weight, mean, std = (np.float64(v) for v in components(dist))
    draws = np.float64(sample(dist, jax.random.key(9), n))
    total_mean = weight @ mean
    total_variance = weight @ (std**2 + mean**2) - total_mean**2
    assert weight.sum() == pytest.approx(1, rel=1e-5)
    assert np.all(np.abs(draws.mean(0) - total_mean) < 4 * np.sqrt(total_variance / n))
    np.testing.assert_allclose(draws.var(0), total_variance, rtol=0.06)
    np.testing.assert_array_equal(draws, sample(dist, jax.random.key(9), n))
    picked = np.float64(draw(dist, jax.random.key(2), jnp.full(n, len(weight) - 1)))
    np.testing.assert_allclose(picked.mean(0), mean[-1], atol=4 * std[-1].max() / np.sqrt(n))
    np.testing.assert_allclose(picked.std(0), std[-1], rtol=0.03)
    if covariance == "full":
        cholesky = np.float64(dist.cholesky_kdd[-1])
        np.testing.assert_allclose(np.cov(picked.T), cholesky @ cholesky.T, atol=0.05 * std[-1].max() ** 2)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_gradients_reach_every_parameter_and_stay_finite_far_out(rng, covariance):
    prior = priors.get("mixture", 5, components=4, covariance=covariance)
    params = prior.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p, z: priors.log_prob(prior.dist(p, None), z).mean(), argnums=(0, 1)))
    for scale in (1.0, 1e3, 1e6):
        found, of_z = gradient(params, jnp.float32(scale * rng.normal(0, 1, (8, 5))))
        assert np.isfinite(of_z).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(found))
    found, _ = gradient(params, jnp.float32(rng.normal(0, 1, (8, 5))))
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(found))
    assert covariance == "diagonal" or np.all(np.triu(found["lower"]) == 0)


def test_gradient_against_finite_differences_in_float64(rng):
    dist, z = mixture(rng, 5, 4, "diagonal"), np.float32(rng.normal(0, 1, (6, 4)))
    gradients, of_z = jax.jit(jax.grad(lambda d, z: log_prob(d, z).sum(), argnums=(0, 1)))(dist, z)
    value = lambda d, z: special.logsumexp(reference(d, z), 1).sum()
    for field, gradient in zip(dist._fields, gradients):
        array = np.float64(getattr(dist, field))
        direction = rng.normal(0, 1, array.shape)
        slope = (value(dist._replace(**{field: array + 1e-5 * direction}), z) - value(dist._replace(**{field: array - 1e-5 * direction}), z)) / 2e-5
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-3, abs=1e-3)
    direction = rng.normal(0, 1, z.shape)
    slope = (value(dist, z + 1e-5 * direction) - value(dist, z - 1e-5 * direction)) / 2e-5
    assert np.sum(of_z * direction) == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_vamp_is_the_mean_of_posteriors_at_clipped_pseudo_inputs(rng):
    shape, k, d = (4, 4, 1), 7, 3
    weights = {"mean": jnp.float32(rng.normal(0, 1, (16, d))), "logvar": jnp.float32(rng.normal(0, 0.3, (16, d)))}
    encode_with = lambda w: lambda x: (x.reshape(len(x), -1) @ w["mean"], x.reshape(len(x), -1) @ w["logvar"])
    prior = priors.get("vamp", d, components=k, x_shape=shape)
    params = prior.init(jax.random.key(0))
    assert params["pseudo"].shape == (k, *shape)
    params = {"pseudo": jnp.float32(rng.uniform(-0.5, 1.5, (k, *shape)))}
    clipped = np.clip(params["pseudo"], 0, 1).reshape(k, -1)
    z = np.float32(rng.normal(0, 1, (9, d)))
    sigma = np.exp(clipped @ weights["logvar"] / 2)
    expected = special.logsumexp(stats.norm.logpdf(z[:, None], clipped @ weights["mean"], sigma).sum(-1), 1) - np.log(k)
    total = lambda p, w: log_prob(prior.dist(p, encode_with(w)), z).sum()
    assert float(total(params, weights)) == pytest.approx(expected.sum(), rel=1e-4)
    of_pseudo, of_encoder = jax.jit(jax.grad(total, argnums=(0, 1)))(params, weights)
    inside = np.asarray((params["pseudo"] > 0) & (params["pseudo"] < 1))
    assert np.all(np.asarray(of_pseudo["pseudo"])[~inside] == 0) and np.all(np.asarray(of_pseudo["pseudo"])[inside] != 0)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(of_encoder))


def test_user_errors():
    with pytest.raises(UserError, match="not known"):
        priors.get("flow", 2)
    with pytest.raises(UserError, match="covariance"):
        priors.get("mixture", 2, covariance="banded")
    with pytest.raises(UserError, match="at least 1"):
        priors.get("mixture", 2, components=0)
