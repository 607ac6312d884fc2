"""Distributions over integers against SciPy, their sums over all levels, their draws against their probabilities, mu-law against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vae_jax.config import UserError
from vae_jax.dsp import mu_law
from vae_jax.losses import discretized

softmax_draw = jax.jit(discretized.softmax_draw, static_argnums=3)
logistic_log_prob = jax.jit(discretized.logistic_log_prob, static_argnums=2)
logistic_draw = jax.jit(discretized.logistic_draw, static_argnums=2)


def uniform(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mixture(rng, rows, m, levels, sharpest):
    """Outputs [rows, 3 m] with means all over and beyond the range, and scales from very wide to `sharpest`."""
    parts = rng.normal(0, 1, (rows, m)), rng.uniform(-1.3, 1.3, (rows, m)), rng.uniform(sharpest, 3, (rows, m))
    return np.concatenate(parts, -1).astype(np.float32)


def exact_log_prob(outputs, x, levels):
    """The same mixture in float64: differences of scipy's logistic.cdf, mirrored where they are of numbers near 1."""
    logits, means, raw = np.split(np.float64(outputs), 3, -1)
    low = np.log(0.25 / (levels - 1))
    scales = np.exp(low + np.logaddexp(0, raw - low))
    centre, half = 2 * x[..., None] / (levels - 1) - 1, 1 / (levels - 1)
    upper = np.where(x[..., None] == levels - 1, np.inf, centre + half)
    lower = np.where(x[..., None] == 0, -np.inf, centre - half)
    mirrored = centre > means
    upper, lower = np.where(mirrored, 2 * means - lower, upper), np.where(mirrored, 2 * means - upper, lower)
    p = stats.logistic.cdf(upper, means, scales) - stats.logistic.cdf(lower, means, scales)
    return special.logsumexp(np.log(np.maximum(p, 1e-300)) + special.log_softmax(logits, -1), -1)


def chi_square(drawn, probability):
    """p-value of the counts of integers; levels expected fewer than 5 times are taken together."""
    counts, expected = np.bincount(drawn, minlength=len(probability)), probability * len(drawn)
    assert counts[probability == 0].sum() == 0
    common = expected >= 5
    join = lambda v: np.append(v[common], v[~common].sum()) if expected[~common].sum() > 0 else v[common]
    return stats.chisquare(join(counts), join(expected)).pvalue


def test_softmax_log_prob_against_scipy(rng):
    logits, x = rng.normal(0, 9, (4, 7, 256)), rng.integers(0, 256, (4, 7))
    expected = np.take_along_axis(special.log_softmax(logits, -1), x[..., None], -1)[..., 0]
    np.testing.assert_allclose(discretized.softmax_log_prob(jnp.float32(logits), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.5, None), (2.0, 7)])
def test_softmax_draws_match_their_frequencies(rng, temperature, top_k):
    logits = rng.normal(0, 2, 40)
    likeliest = np.sort(logits)[::-1][:top_k][-1]
    probability = special.softmax(np.where(logits >= likeliest, logits, -np.inf) / temperature)
    rows = jnp.broadcast_to(jnp.float32(logits), (200_000, 40))
    drawn = np.asarray(softmax_draw(uniform(1, 200_000), rows, temperature, top_k))
    assert drawn.dtype == np.int32 and chi_square(drawn, probability) > 0.01


def test_softmax_draws_stay_inside_what_is_possible(rng):
    logits = np.where(rng.uniform(size=(5000, 256)) < 0.9, -np.inf, rng.normal(0, 30, (5000, 256)))
    logits[:, 17] = np.maximum(logits[:, 17], -1e4)
    drawn = np.asarray(softmax_draw(uniform(2, 5000), jnp.float32(logits)))
    assert np.isfinite(np.take_along_axis(logits, drawn[:, None], 1)).all()
    few = np.asarray(softmax_draw(uniform(3, 5000), jnp.float32(logits), 50.0, 4))
    assert np.all(np.take_along_axis(logits, few[:, None], 1)[:, 0] >= np.sort(logits, 1)[:, -4])


def test_temperature_is_a_number_or_one_a_row_and_zero_takes_the_likeliest(rng):
    logits, random = jnp.float32(rng.normal(0, 1, (6, 50))), uniform(4, 6)
    np.testing.assert_array_equal(softmax_draw(random, logits, 0.0), np.argmax(logits, -1))
    mixed = softmax_draw(random, logits, jnp.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.3]))
    np.testing.assert_array_equal(mixed[::2], np.argmax(logits, -1)[::2])
    np.testing.assert_array_equal(mixed[1], softmax_draw(random, logits, 1.0)[1])
    np.testing.assert_array_equal(softmax_draw(random, logits, 1.0, 1), np.argmax(logits, -1))


def test_the_ends_of_the_uniform_numbers_are_draws_too():
    ends = jnp.array([0.0, 1.0 - 2.0**-24])
    logits = jnp.array([-jnp.inf, 0.0, 1.0, -jnp.inf])
    np.testing.assert_array_equal(softmax_draw(ends, jnp.stack([logits, logits])), [1, 2])
    wide = jnp.broadcast_to(jnp.array([0.0, 0.1, 2.0]), (2, 3))
    np.testing.assert_array_equal(logistic_draw(jnp.stack([ends, ends], -1), wide, 256), [0, 255])
    np.testing.assert_array_equal(logistic_draw(jnp.stack([ends, ends], -1), wide, 256, 0.0), 140)


@pytest.mark.parametrize("top_k", [0, 51, -1])
def test_top_k_outside_the_levels_is_refused(top_k):
    with pytest.raises(UserError, match="top_k is"):
        softmax_draw(jnp.zeros(2), jnp.zeros((2, 50)), 1.0, top_k)


@pytest.mark.parametrize("levels, sharpest", [(256, -12.0), (65536, -14.0), (2, -4.0)])
def test_logistic_levels_sum_to_one(rng, levels, sharpest):
    outputs = mixture(rng, 12, 5, levels, sharpest)
    every = jnp.broadcast_to(jnp.float32(outputs)[:, None], (12, levels, 15)), jnp.broadcast_to(jnp.arange(levels), (12, levels))
    total = np.exp(np.float64(logistic_log_prob(*every, levels))).sum(1)
    np.testing.assert_allclose(total, 1.0, atol=2e-4 if levels > 256 else 2e-5)  # a level of 65,536 is 2^9 steps of float32


def test_logistic_log_prob_against_scipy_on_every_level(rng):
    outputs = mixture(rng, 30, 3, 256, -6.0)
    x = np.broadcast_to(np.arange(256), (30, 256))
    expected = exact_log_prob(outputs[:, None], x, 256)
    ours = logistic_log_prob(jnp.broadcast_to(jnp.float32(outputs)[:, None], (30, 256, 9)), jnp.asarray(x), 256)
    seen = expected > -600  # beyond, float64's differences are rounding
    assert seen.mean() > 0.9
    np.testing.assert_allclose(np.asarray(ours)[seen], expected[seen], rtol=2e-4, atol=2e-4)


def test_logistic_log_prob_of_16_bits_against_scipy(rng):
    outputs = mixture(rng, 500, 4, 65536, -9.0)
    x = np.concatenate([rng.integers(0, 65536, 400), np.repeat([0, 1, 65534, 65535], 25)])
    expected = exact_log_prob(outputs, x, 65536)
    seen = expected > -600
    ours = np.asarray(logistic_log_prob(jnp.float32(outputs), jnp.asarray(x), 65536))
    assert seen.mean() > 0.9
    np.testing.assert_allclose(ours[seen], expected[seen], rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("levels", [256, 65536])
def test_far_values_and_extreme_scales_stay_finite(levels):
    means, log_scales = jnp.array([-1e4, -3.0, 0.0, 1e4]), jnp.array([-60.0, -7.0, 0.0, 30.0, 85.0])
    outputs = jnp.stack([jnp.zeros((4, 5)), *jnp.meshgrid(means, log_scales, indexing="ij")], -1).reshape(-1, 1, 3)
    x = jnp.broadcast_to(jnp.array([0, 1, levels // 2, levels - 2, levels - 1]), (20, 5))
    value, slope = jax.value_and_grad(lambda o: logistic_log_prob(jnp.broadcast_to(o, (20, 5, 3)), x, levels).sum())(outputs)
    assert np.isfinite(value) and np.isfinite(slope).all()
    # A value far above a sharp mean: raising the mean must still help
    assert slope.reshape(4, 5, 3)[1, 1, 1] > 0


def test_logistic_draws_match_their_probabilities(rng):
    outputs = np.float32([0.3, -0.5, 1.0, -0.9, 0.1, 0.7, -2.0, -3.0, -1.0])
    rows = jnp.broadcast_to(jnp.float32(outputs), (200_000, 9))
    drawn = np.asarray(logistic_draw(uniform(5, 200_000, 2), rows, 32))
    assert drawn.min() == 0 and drawn.max() == 31
    assert chi_square(drawn, np.exp(exact_log_prob(outputs, np.arange(32), 32))) > 0.01


def test_logistic_draw_cools_to_the_mean_of_the_likeliest():
    outputs = jnp.float32([[0.0, 2.0, -0.5, 0.25, 0.0, 0.0], [3.0, 2.0, -0.5, 5.0, 0.0, 0.0]])
    np.testing.assert_array_equal(logistic_draw(uniform(6, 2, 2), outputs, 65536, 0.0), np.round(np.array([0.625, 0.25]) * 65535))
    both = logistic_draw(uniform(6, 2, 2), outputs, 65536, jnp.array([0.0, 1.0]))
    assert both[0] == round(0.625 * 65535) and both[1] != round(0.25 * 65535)


@pytest.mark.parametrize("classes", [2, 16, 256, 1024])
def test_mu_law_against_its_formula(rng, classes):
    mu, x = classes - 1, rng.uniform(-1.2, 1.2, 5000)
    clipped = np.clip(x, -1, 1)
    expected = np.sign(clipped) * np.log(1 + mu * np.abs(clipped)) / np.log(1 + mu)
    codes = np.asarray(mu_law.encode(jnp.float32(x), classes))
    assert codes.dtype == np.int32 and codes.min() == 0 and codes.max() == mu
    between = np.abs((expected + 1) / 2 * mu % 1 - 0.5) > 1e-3
    np.testing.assert_array_equal(codes[between], np.round((expected + 1) / 2 * mu)[between])
    squeezed = 2 * np.arange(classes) / mu - 1
    centres = np.sign(squeezed) / mu * ((1 + mu) ** np.abs(squeezed) - 1)
    np.testing.assert_allclose(mu_law.decode(jnp.arange(classes), classes), centres, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 16, 255, 256, 4096])
def test_mu_law_gives_each_centre_its_own_class(classes):
    np.testing.assert_array_equal(mu_law.encode(mu_law.decode(jnp.arange(classes), classes), classes), np.arange(classes))
