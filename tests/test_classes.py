"""Class Gaussians against the mixture they stand for, drawn many times."""

import numpy as np
import pytest

from vae_jax.latents import classes, statistics


def posteriors(n=60, d=4, seed=0):
    """Codes of three classes of unequal size, with correlated means."""
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 2, 5], n, p=[0.5, 0.3, 0.2])
    mean = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + label[:, None]
    return mean, rng.uniform(-3, 1, (n, d)), label


def test_fit_is_the_limit_of_sampled_codes():
    mean, logvar, label = posteriors()
    fitted = classes.fit(mean, logvar, label)
    np.testing.assert_array_equal(fitted.label, [0, 2, 5])
    np.testing.assert_array_equal(fitted.count, [(label == c).sum() for c in (0, 2, 5)])
    for k, c in enumerate(fitted.label):
        own, times = label == c, 20_000
        z = statistics.draw(np.tile(mean[own], (times, 1)), np.tile(logvar[own], (times, 1)))
        wanted = np.cov(z.T, bias=True)
        scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        assert np.abs(fitted.mean[k] - z.mean(0)).max() < 0.01 and np.abs((fitted.covariance[k] - wanted) / scale).max() < 0.01


def test_a_class_of_one_example_is_its_posterior():
    fitted = classes.fit([[1.0, -2.0]], [[0.0, np.log(4.0)]], [7])
    np.testing.assert_allclose(fitted.mean, [[1, -2]])
    np.testing.assert_allclose(fitted.covariance, [np.diag([1, 4])])


def test_draws_have_the_fitted_moments_and_follow_the_seed():
    mean, logvar, label = posteriors(d=3)
    fitted = classes.fit(mean, logvar, label)
    z = classes.draw(fitted, 2, 400_000)
    np.testing.assert_allclose(z.mean(0), fitted.mean[1], atol=0.02)
    np.testing.assert_allclose(np.cov(z.T), fitted.covariance[1], atol=0.02 * np.abs(fitted.covariance[1]).max())
    narrow = classes.draw(fitted, 2, 400_000, spread=0.5, temperature=0.2)
    np.testing.assert_allclose(np.cov(narrow.T), 0.01 * np.eye(3), atol=2e-4)
    np.testing.assert_array_equal(z[:5], classes.draw(fitted, 2, 5))
    assert not np.array_equal(z[:5], classes.draw(fitted, 2, 5, seed=1))
    np.testing.assert_allclose(classes.draw(fitted, 5, 3, temperature=0.0), np.tile(fitted.mean[2], (3, 1)))


def test_codes_without_variance_of_their_own():
    line = np.outer(np.arange(5.0), [1, 2])
    z = classes.draw(classes.fit(line, None, np.zeros(5, int)), 0, 1000)
    np.testing.assert_allclose(z[:, 1], 2 * z[:, 0], atol=1e-6)  # they stay on the line of the means
    with pytest.raises(ValueError, match="class 3"):
        classes.draw(classes.fit(line, None, np.zeros(5, int)), 3, 1)
