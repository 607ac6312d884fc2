"""Likelihoods against SciPy, their normalisers by numerical integration or exact sums, their moments by their own draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vae_jax.config import UserError
from vae_jax.losses import likelihoods


def jitted(name, **settings):
    lik = likelihoods.get(name, **settings)
    return lik._replace(log_prob=jax.jit(lik.log_prob), mean=jax.jit(lik.mean), sample=jax.jit(lik.sample))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bernoulli_against_scipy(rng):
    logits, x = rng.normal(0, 3, (5, 4, 3, 2)), rng.integers(0, 2, (5, 4, 3, 2))
    ours = jitted("bernoulli").log_prob({"x": jnp.float32(logits)}, jnp.float32(x))
    np.testing.assert_allclose(ours, stats.bernoulli.logpmf(x, special.expit(logits)).sum((1, 2, 3)), rtol=1e-5)


def test_bernoulli_floor_is_reached_at_the_targets_logits_and_not_below(rng):
    lik, x = jitted("bernoulli"), rng.uniform(0.02, 0.98, (6, 50))
    floor = np.asarray(lik.floor(jnp.float32(x)))
    np.testing.assert_allclose(floor, special.entr(x).sum(1) + special.entr(1 - x).sum(1), rtol=1e-5)
    np.testing.assert_allclose(-lik.log_prob({"x": jnp.float32(special.logit(x))}, jnp.float32(x)), floor, rtol=1e-5)
    others = -lik.log_prob({"x": jnp.float32(special.logit(x) + rng.normal(0, 1, x.shape))}, jnp.float32(x))
    assert np.all(others > floor)
    np.testing.assert_array_equal(lik.floor(jnp.array([[0.0, 1.0, 1.0]])), 0.0)


def test_bernoulli_gradient_is_target_minus_probability(rng):
    logits, x = jnp.float32(rng.normal(0, 5, (3, 40))), jnp.float32(rng.uniform(size=(3, 40)))
    gradient = jax.grad(lambda v: jitted("bernoulli").log_prob({"x": v}, x).sum())(logits)
    np.testing.assert_allclose(gradient, x - special.expit(logits), atol=1e-6)


def test_continuous_bernoulli_integrates_to_one_and_has_its_mean():
    logits = np.array([-60.0, -8.0, -0.6, -0.4, -0.11, -0.09, -1e-3, -1e-6, 0.0, 1e-4, 0.05, 0.3, 2.0, 15.0, 60.0])
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, weights = (nodes + 1) / 2, weights / 2
    outputs = {"x": jnp.broadcast_to(jnp.float32(logits), (400, len(logits))).reshape(-1, 1)}
    lik = jitted("continuous_bernoulli")
    density = np.exp(np.float64(lik.log_prob(outputs, jnp.float32(np.repeat(x, len(logits)))[:, None]))).reshape(400, -1)
    np.testing.assert_allclose(weights @ density, 1.0, rtol=2e-5)
    np.testing.assert_allclose((weights * x) @ density, lik.mean({"x": jnp.float32(logits)}), rtol=2e-5, atol=1e-6)


def test_continuous_bernoulli_is_the_papers_formula():
    lam, x = np.array([0.01, 0.2, 0.49, 0.6, 0.999]), np.array([0.3, 0.0, 1.0, 0.7, 0.5])
    expected = x * np.log(lam) + (1 - x) * np.log1p(-lam) + np.log(2 * np.arctanh(1 - 2 * lam) / (1 - 2 * lam))
    ours = jitted("continuous_bernoulli").log_prob({"x": jnp.float32(special.logit(lam))[:, None]}, jnp.float32(x)[:, None])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-12.0, -5e-4, 0.0, 1.3, 40.0])
def test_continuous_bernoulli_draws_follow_its_distribution_function(logit):
    lik = jitted("continuous_bernoulli")
    draws = np.float64(lik.sample({"x": jnp.full((4000,), logit)}, jax.random.key(1)))
    slope = logit or 1e-9
    assert stats.kstest(draws, lambda x: np.expm1(slope * x) / np.expm1(slope)).pvalue > 1e-3
    assert draws.min() >= 0 and draws.max() <= 1


def test_gaussian_against_scipy_fixed_and_learned(rng):
    mean, x = rng.normal(0.5, 0.3, (4, 5, 2)), rng.uniform(size=(4, 5, 2))
    fixed = jitted("gaussian", sigma=0.1).log_prob({"x": jnp.float32(mean)}, jnp.float32(x))
    np.testing.assert_allclose(fixed, stats.norm.logpdf(x, mean, 0.1).sum((1, 2)), rtol=1e-4)
    lik = jitted("gaussian", min_sigma=0.02)
    for log_sigma in (np.float32(-1.0), rng.normal(-1, 0.5, 2), rng.normal(-1, 0.5, x.shape)):
        sigma = np.exp(np.log(0.02) + np.logaddexp(0, log_sigma - np.log(0.02)))
        ours = lik.log_prob({"x": jnp.float32(mean), "log_sigma": jnp.float32(log_sigma)}, jnp.float32(x))
        np.testing.assert_allclose(ours, stats.norm.logpdf(x, mean, sigma).sum((1, 2)), rtol=1e-4)


def test_gaussian_sigma_is_floored_with_a_living_gradient():
    lik, x = jitted("gaussian"), jnp.full((1, 10), 0.5)
    nats = lambda log_sigma: -lik.log_prob({"x": x + 0.1, "log_sigma": log_sigma}, x)[0]
    floor = float(lik.floor(x)[0])
    assert floor == pytest.approx(10 * (np.log(1 / 256) + 0.5 * np.log(2 * np.pi)), rel=1e-5)
    assert float(-lik.log_prob({"x": x, "log_sigma": jnp.float32(-40.0)}, x)[0]) == pytest.approx(floor, rel=1e-5)
    assert float(jax.grad(nats)(jnp.float32(-9.0))) < 0


def test_gaussian_squash_and_draws():
    lik, outputs = jitted("gaussian", sigma=0.05, squash=True), {"x": jnp.full((20000, 1), 1.0)}
    np.testing.assert_allclose(lik.mean(outputs)[0], special.expit(1.0), rtol=1e-6)
    draws = np.float64(lik.sample(outputs, jax.random.key(0)))
    assert abs(draws.mean() - special.expit(1.0)) < 4 * 0.05 / np.sqrt(20000)
    assert abs(draws.std() - 0.05) < 4 * 0.05 / np.sqrt(2 * 20000)


def test_sigma_of_an_mse_weight(rng):
    assert likelihoods.sigma_of_mse_weight(1e6, 16384) == pytest.approx(0.0905, abs=1e-4)
    assert likelihoods.sigma_of_mse_weight(1e3, 784) == pytest.approx(0.626, abs=1e-3)
    x, centre = jnp.float32(rng.uniform(size=(2, 784))), jnp.float32(rng.uniform(size=(2, 784)))
    loss = lambda mean: jnp.sum(-jitted("gaussian", sigma=likelihoods.sigma_of_mse_weight(1e3, 784)).log_prob({"x": mean}, x))
    weighted = lambda mean: jnp.sum(1e3 * jnp.mean((x - mean) ** 2, -1))
    np.testing.assert_allclose(jax.grad(loss)(centre), jax.grad(weighted)(centre), rtol=1e-4, atol=1e-5)


def all_pictures(levels, channels):
    grid = np.array(list(itertools.product(range(levels), repeat=channels)), np.float32)
    return jnp.asarray(grid / (levels - 1))


@pytest.mark.parametrize("levels, channels", [(256, 1), (20, 2), (8, 3)])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_logistic_mixture_sums_to_one(rng, levels, channels, spread):
    lik, x = jitted("logistic_mixture", components=3, levels=levels), all_pictures(levels, channels)
    raw = jnp.broadcast_to(jnp.float32(rng.normal(0, spread, lik.channels(channels))), (len(x), lik.channels(channels)))
    assert float(jnp.sum(jnp.exp(lik.log_prob({"x": raw}, x)))) == pytest.approx(1.0, abs=2e-5)


def reference_logistic_mixture(raw, x, components, levels):
    """PixelCNN++'s density of one pixel in float64, from distribution functions."""
    channels, rows = len(x), raw.reshape(-1, components)
    logits, means, scales, coefficients = np.split(rows, [1, 1 + channels, 1 + 2 * channels])
    scales, coefficients, x = np.exp(-7 + np.logaddexp(0, scales + 7)), np.tanh(coefficients), 2 * np.float64(x) - 1
    pairs = {(1, 0): 0, (2, 0): 1, (2, 1): 2}
    total = np.zeros(components)
    for c in range(channels):
        law = stats.logistic(means[c] + sum(coefficients[pairs[c, j]] * x[j] for j in range(c)), scales[c])
        low = -np.inf if x[c] < -1 + 1 / levels else x[c] - 1 / (levels - 1)
        high = np.inf if x[c] > 1 - 1 / levels else x[c] + 1 / (levels - 1)
        left_tail = law.mean() > x[c]  # take the difference where it does not round to nothing
        total += np.log(np.where(left_tail, law.cdf(high) - law.cdf(low), law.sf(low) - law.sf(high)))
    return special.logsumexp(total + special.log_softmax(logits[0]))


def test_logistic_mixture_against_distribution_functions(rng):
    lik = jitted("logistic_mixture", components=4)
    for channels in (1, 3):
        raw = rng.normal(0, 1, (12, 2, lik.channels(channels)))
        x = rng.integers(0, 256, (12, 2, channels)) / 255
        x[0], x[1] = 0.0, 1.0
        expected = [sum(reference_logistic_mixture(raw[b, t], x[b, t], 4, 256) for t in range(2)) for b in range(12)]
        np.testing.assert_allclose(lik.log_prob({"x": jnp.float32(raw)}, jnp.float32(x)), expected, rtol=2e-5)


def test_logistic_mixture_channel_counts():
    lik = jitted("logistic_mixture", components=10)
    assert (lik.channels(1), lik.channels(3)) == (30, 100)
    with pytest.raises(ValueError, match="no logistic mixture"):
        lik.mean({"x": jnp.zeros((1, 40))})


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_mixture_draws_have_its_probabilities_and_mean(rng, channels):
    levels, n = 5, 40000
    lik, x = jitted("logistic_mixture", components=2, levels=levels), all_pictures(5, channels)
    raw = jnp.float32(rng.normal(0, 1, lik.channels(channels)))
    draws = np.asarray(lik.sample({"x": jnp.broadcast_to(raw, (n, len(raw)))}, jax.random.key(3)))
    index = np.ravel_multi_index(tuple(np.rint(draws.T * (levels - 1)).astype(int)), (levels,) * channels)
    probability = np.float64(np.exp(lik.log_prob({"x": jnp.broadcast_to(raw, (len(x), len(raw)))}, x)))
    assert stats.chisquare(np.bincount(index, minlength=len(x)), n * probability / probability.sum()).pvalue > 1e-3
    np.testing.assert_allclose(lik.mean({"x": raw[None]})[0], probability @ np.asarray(x), atol=0.5 / (levels - 1))


def test_logistic_mixture_mean_is_right_to_half_a_level(rng):
    lik, x = jitted("logistic_mixture", components=3), all_pictures(256, 1)
    for spread in (0.3, 1.0, 5.0):
        raw = jnp.float32(rng.normal(0, spread, (1, 9)))
        probability = np.exp(lik.log_prob({"x": jnp.broadcast_to(raw, (256, 9))}, x))
        assert abs(float(lik.mean({"x": raw})[0, 0]) - float(probability @ np.asarray(x)[:, 0])) < 0.5 / 255


def test_bits_per_dim_of_uniform_bytes_is_eight():
    lik, x = jitted("logistic_mixture", components=1), all_pictures(256, 1)
    assert likelihoods.bits_per_dim(3 * np.log(256), 3) == pytest.approx(8)
    nats = -lik.log_prob({"x": jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), (256, 3))}, x)
    assert 7.5 < likelihoods.bits_per_dim(float(nats.mean()), 1) < 9.5
    assert lik.bits and not jitted("gaussian").bits


@pytest.mark.parametrize("name, data_channels", [("bernoulli", 1), ("continuous_bernoulli", 1), ("gaussian", 1), ("logistic_mixture", 3)])
def test_values_and_gradients_are_finite_at_extremes(rng, name, data_channels):
    lik = jitted(name)
    x = jnp.float32(rng.choice([0.0, 0.5019608, 1.0], (8, 4, data_channels)))
    gradients_of = jax.jit(jax.value_and_grad(lambda outputs: lik.log_prob(outputs, x).sum()))
    gradient_of_mean = jax.jit(jax.grad(lambda outputs: lik.mean(outputs).sum()))
    for scale in (1e-6, 1.0, 30.0, 1e3, 1e6):
        raw = jnp.float32(scale * rng.normal(0, 1, (8, 4, lik.channels(data_channels))))
        outputs = {"x": raw, "log_sigma": jnp.float32(-np.log(scale))}
        value, gradients = gradients_of(outputs)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients.values())
        assert np.isfinite(lik.sample(outputs, jax.random.key(0))).all()
        assert all(np.isfinite(g).all() for g in gradient_of_mean(outputs).values())
        mean = np.asarray(lik.mean(outputs))
        assert name == "gaussian" or np.all((mean >= 0) & (mean <= 1))


def test_half_precision_activations_are_summed_in_float32(rng):
    raw, x = jnp.bfloat16(rng.normal(0, 1, (2, 5000))), jnp.float32(rng.integers(0, 2, (2, 5000)))
    ours = jitted("bernoulli").log_prob({"x": raw}, x)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, stats.bernoulli.logpmf(np.asarray(x), special.expit(np.float64(raw))).sum(1), rtol=1e-5)


def test_user_errors():
    with pytest.raises(UserError, match="not known"):
        likelihoods.get("poisson")
    with pytest.raises(UserError, match="sigma"):
        likelihoods.get("gaussian", sigma=-1.0)
    with pytest.raises(UserError, match="components"):
        likelihoods.get("logistic_mixture", components=0)
    with pytest.raises(ValueError, match="log_sigma"):
        likelihoods.get("gaussian").log_prob({"x": jnp.zeros((1, 2))}, jnp.zeros((1, 2)))
