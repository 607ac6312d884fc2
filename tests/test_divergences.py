"""Divergences against SciPy; the evidence decomposition and its bounds on a model whose log p(x) is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vae_jax.config import UserError
from vae_jax.losses import divergences, likelihoods


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_information_and_entropy():
    assert float(divergences.information(jnp.float32(1.0))) == 0.0
    np.testing.assert_allclose(divergences.entropy(jnp.array([0.5, 0.5])), np.log(2), rtol=1e-6)
    assert float(divergences.entropy(jnp.array([1.0, 0.0]))) == 0.0


def test_kl_is_no_difference_of_entropies():
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    assert float(divergences.kl(p, q)) == pytest.approx(0.511, abs=5e-4)
    assert float(divergences.kl(q, p)) == pytest.approx(0.368, abs=5e-4)
    assert float(divergences.entropy(q) - divergences.entropy(p)) == pytest.approx(-0.368, abs=5e-4)
    np.testing.assert_allclose(divergences.kl(p, q), divergences.cross_entropy(p, q) - divergences.entropy(p), rtol=1e-6)


def test_kl_on_random_pairs(rng):
    p, q = rng.dirichlet(np.ones(6), 1000), rng.dirichlet(np.ones(6), 1000)
    p[:100, 0] = 0
    p /= p.sum(1, keepdims=True)
    ours = np.asarray(divergences.kl(jnp.float32(p), jnp.float32(q)))
    assert ours.min() >= -1e-6
    np.testing.assert_allclose(ours, special.rel_entr(p, q).sum(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(divergences.kl(jnp.float32(p), jnp.float32(p)), 0.0)
    assert np.isinf(divergences.kl(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])))
    assert np.isfinite(divergences.kl(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))


@pytest.mark.parametrize("mean, logvar, prior_mean, prior_logvar", [(0.0, 0.0, 0.0, 0.0), (1.3, -2.0, 0.0, 0.0), (-2.0, 1.0, 0.5, -1.0)])
def test_gaussian_kl_by_integration(mean, logvar, prior_mean, prior_logvar):
    q, p = stats.norm(mean, np.exp(logvar / 2)), stats.norm(prior_mean, np.exp(prior_logvar / 2))
    expected = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 12 * q.std(), mean + 12 * q.std())[0]
    arguments = [jnp.full((2, 3), v) for v in (mean, logvar, prior_mean, prior_logvar)]
    np.testing.assert_allclose(divergences.kl_normals(*arguments), np.full((2, 3), expected), rtol=1e-5, atol=1e-6)
    if prior_mean == prior_logvar == 0:
        np.testing.assert_allclose(divergences.kl_normal(*arguments[:2]), np.full((2, 3), expected), rtol=1e-5, atol=1e-6)


def test_log_normal_against_scipy_with_leading_axes(rng):
    z, mean, logvar = rng.normal(0, 2, (7, 4, 3)), rng.normal(0, 2, (4, 3)), rng.normal(0, 1, (4, 3))
    expected = stats.norm.logpdf(z, mean, np.exp(logvar / 2)).sum(-1)
    np.testing.assert_allclose(divergences.log_normal(jnp.float32(z), jnp.float32(mean), jnp.float32(logvar)), expected, rtol=1e-5)


def test_draws_differ_by_key_and_match_their_moments():
    mean, logvar, n = jnp.array([-1.0, 0.0, 3.0]), jnp.array([-4.0, 0.0, 1.0]), 10000
    draws = lambda seed: np.float64(divergences.reparameterize(jax.random.key(seed), *(jnp.broadcast_to(v, (n, 3)) for v in (mean, logvar))))
    z, variance = draws(0), np.exp(np.float64(logvar))
    np.testing.assert_array_equal(z, draws(0))
    assert np.all(z != draws(1))
    assert np.all(np.abs(z.mean(0) - mean) < 3 * np.sqrt(variance / n))
    assert np.all(np.abs(z.var(0) - variance) < 3 * variance * np.sqrt(2 / n))


def test_reparameterized_gradient_of_the_second_moment():
    """E z^2 = mean^2 + e^logvar, so its gradients are 2 mean and e^logvar; the estimate lies within 4 standard errors."""
    n, mean, logvar = 200_000, 0.7, -0.5
    second = lambda m, v: jnp.mean(divergences.reparameterize(jax.random.key(5), jnp.full((n,), m), jnp.full((n,), v)) ** 2)
    d_mean, d_logvar = jax.jit(jax.grad(second, argnums=(0, 1)))(mean, logvar)
    sigma = np.exp(logvar / 2)
    assert abs(float(d_mean) - 2 * mean) < 4 * 2 * sigma / np.sqrt(n)
    assert abs(float(d_logvar) - sigma**2) < 4 * np.sqrt(2 * sigma**4 + (mean * sigma) ** 2) / np.sqrt(n)


def test_free_bits_floors_the_batch_mean_of_a_dimension_or_the_total_of_an_example():
    kl_bd = jnp.array([[0.0, 3.0], [0.4, 1.0]])
    assert float(divergences.free_bits(kl_bd)) == pytest.approx(2.2)
    assert float(divergences.free_bits(kl_bd, per_dimension=0.5)) == pytest.approx(0.5 + 2.0)
    assert float(divergences.free_bits(kl_bd, per_example=2.0)) == pytest.approx((3.0 + 2.0) / 2)
    np.testing.assert_allclose(jax.grad(lambda k: divergences.free_bits(k, per_dimension=0.5))(kl_bd), [[0, 0.5], [0, 0.5]])
    np.testing.assert_allclose(jax.grad(lambda k: divergences.free_bits(k, per_example=2.0))(kl_bd), [[0.5, 0.5], [0, 0]])
    with pytest.raises(UserError, match="one of them"):
        divergences.free_bits(kl_bd, per_dimension=0.5, per_example=0.5)


@pytest.mark.parametrize("kind", ["linear", "sigmoid", "cyclical"])
def test_kl_warm_up_starts_at_zero_and_ends_exactly_at_beta(kind):
    weight = jax.jit(jax.vmap(lambda step: divergences.beta_weight(step, kind, beta=0.3, warmup_steps=400, cycles=4)))
    curve = np.asarray(weight(jnp.arange(501)))
    assert curve[0] == 0 and np.all(curve[400:] == np.float32(0.3)) and curve.min() >= 0 and curve.max() <= np.float32(0.3)
    rises = np.diff(curve)
    if kind == "cyclical":
        np.testing.assert_allclose(curve[[0, 100, 200, 300]], 0, atol=1e-6)
        np.testing.assert_allclose(curve[[25, 125, 350]], [0.15, 0.15, 0.3], rtol=1e-4)
        assert np.sum(rises < 0) == 3
    else:
        assert np.all(rises >= 0) and curve[200] == pytest.approx(0.15, rel=1e-4)
    assert float(divergences.beta_weight(100, kind, 0.3, 400)) == pytest.approx(curve[100], abs=1e-6)


def test_constant_weight_and_user_errors():
    cooled = [float(divergences.beta_weight(t, "cooling", 0.5, 100, start=32.0)) for t in (0, 50, 100, 1000)]
    np.testing.assert_allclose(cooled, [32.0, 4.0, 0.5, 0.5], rtol=1e-6)
    with pytest.raises(UserError, match="above 0"):
        divergences.beta_weight(0, "cooling", 1.0, 100)
    assert float(divergences.beta_weight(0, beta=4.0)) == 4.0
    with pytest.raises(UserError, match="not known"):
        divergences.beta_weight(0, "cosine", 1.0, 10)
    with pytest.raises(UserError, match="warmup_steps=0"):
        divergences.beta_weight(0, "linear")


def test_log_mean_exp_and_weights_far_from_zero(rng):
    log_w = rng.normal(0, 3, (9, 4)) - 5000.0
    np.testing.assert_allclose(divergences.log_mean_exp(jnp.float32(log_w)), special.logsumexp(log_w, 0) - np.log(9), rtol=1e-6)
    np.testing.assert_allclose(divergences.importance_weights(jnp.float32(log_w)), special.softmax(log_w, 0), atol=2e-3)
    np.testing.assert_allclose(divergences.importance_weights(jnp.float32(log_w)).sum(0), 1, rtol=1e-6)


class Linear:
    """z ~ N(0, I_2), x = W z + b + 0.5 eps in R^3: evidence and posterior in closed form, float64."""

    def __init__(self, rng):
        self.w, self.b, self.sigma = rng.normal(0, 1, (3, 2)), rng.normal(0, 1, 3), 0.5
        self.x = self.w @ rng.normal(0, 1, 2) + self.b + self.sigma * rng.normal(0, 1, 3)
        self.evidence = stats.multivariate_normal(self.b, self.w @ self.w.T + self.sigma**2 * np.eye(3)).logpdf(self.x)
        self.precision = np.eye(2) + self.w.T @ self.w / self.sigma**2
        self.mean = np.linalg.solve(self.precision, self.w.T @ (self.x - self.b)) / self.sigma**2

    def log_likelihood(self, z_bd):
        lik, centre = likelihoods.get("gaussian", sigma=self.sigma), z_bd @ jnp.float32(self.w.T) + jnp.float32(self.b)
        return lik.log_prob({"x": centre}, jnp.broadcast_to(jnp.float32(self.x), centre.shape))

    def elbo(self, mean_bd, logvar_bd):
        """Exact: the expectation of a quadratic is its value at the mean less half the curvature times the variance."""
        spread = jnp.sum(jnp.exp(logvar_bd) * jnp.float32((self.w**2).sum(0)), -1) / (2 * self.sigma**2)
        return self.log_likelihood(mean_bd) - spread - divergences.kl_normal(mean_bd, logvar_bd).sum(-1)

    def gap(self, mean, logvar):
        """KL(q || posterior) between multivariate normals."""
        variance, offset = np.exp(logvar), mean - self.mean
        log_dets = -np.linalg.slogdet(self.precision)[1] - logvar.sum()
        return 0.5 * (np.sum(np.diag(self.precision) * variance) + offset @ self.precision @ offset - 2 + log_dets)


def test_evidence_is_elbo_plus_gap(rng):
    model = Linear(rng)
    mean = model.mean + rng.normal(0, 0.5, (100, 2))
    logvar = -np.log(np.diag(model.precision)) + rng.normal(0, 0.7, (100, 2))
    elbo = np.float64(jax.jit(model.elbo)(jnp.float32(mean), jnp.float32(logvar)))
    gaps = np.array([model.gap(m, v) for m, v in zip(mean, logvar)])
    np.testing.assert_allclose(elbo + gaps, model.evidence, atol=1e-4)
    assert np.all(elbo <= model.evidence) and gaps.min() > 0


def test_importance_weighted_bound_lies_between_elbo_and_evidence(rng):
    model, n = Linear(rng), 2000
    mean, logvar = jnp.float32(model.mean + 0.15), jnp.float32(-np.log(np.diag(model.precision)) + 0.5)

    @jax.jit
    def bounds(key):
        z = divergences.reparameterize(key, jnp.broadcast_to(mean, (64, n, 2)), logvar)
        log_w = model.log_likelihood(z.reshape(-1, 2)).reshape(64, n) + divergences.log_normal(z, 0.0, jnp.zeros(2))
        log_w = log_w - divergences.log_normal(z, mean, logvar)
        return [divergences.log_mean_exp(log_w[:s]) for s in (1, 8, 64)], log_w

    (one, eight, many), log_w = (jax.tree.map(np.float64, v) for v in bounds(jax.random.key(2)))
    exact = float(model.elbo(mean[None], logvar[None])[0])
    error = lambda v: 4 * v.std() / np.sqrt(n)
    assert abs(one.mean() - exact) < error(one)
    assert exact + error(eight) < eight.mean() < many.mean() < model.evidence + error(many)
    assert model.evidence - many.mean() < 0.1 * (model.evidence - exact)
    assert np.all(log_w.mean(0) <= many + 1e-5)
