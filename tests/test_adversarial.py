"""Adversarial losses: values worked out by hand, where gradients are zero, who learns from what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.config import UserError
from vae_jax.losses import adversarial
from vae_jax.models.critics import Critics

REAL = [jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([[0.0]])]  # two critics, two examples at two positions; one position
FAKE = [jnp.array([[-2.0, 0.5], [-0.5, 0.0]]), jnp.array([[3.0]])]


def test_values_by_hand():
    # hinge: (0 + 0.5 + 2 + 0) / 4 + (0 + 1.5 + 0.5 + 1) / 4 = 1.375 and 1 + 4 = 5
    assert adversarial.hinge_critic(REAL, FAKE) == pytest.approx((1.375 + 5) / 2)
    # -(-2 + 0.5 - 0.5 + 0) / 4 = 0.5 and -3
    assert adversarial.hinge_generator(FAKE) == pytest.approx((0.5 - 3) / 2)
    # (1 + 0.25 + 4 + 0) / 4 + (4 + 0.25 + 0.25 + 0) / 4 = 2.4375 and 1 + 9 = 10
    assert adversarial.least_squares_critic(REAL, FAKE) == pytest.approx((2.4375 + 10) / 2)
    # (9 + 0.25 + 2.25 + 1) / 4 = 3.125 and 4
    assert adversarial.least_squares_generator(FAKE) == pytest.approx((3.125 + 4) / 2)


def test_hinge_has_no_gradient_where_the_critic_is_right_by_a_margin():
    real, fake = jnp.array([1.01, 5.0, 0.99, -7.0]), jnp.array([-1.01, -5.0, -0.99, 7.0])
    of_real, of_fake = jax.grad(lambda r, f: adversarial.hinge_critic([r], [f]), (0, 1))(real, fake)
    np.testing.assert_allclose(of_real, [0, 0, -0.25, -0.25])
    np.testing.assert_allclose(of_fake, [0, 0, 0.25, 0.25])
    np.testing.assert_allclose(jax.grad(lambda f: adversarial.hinge_generator([f]))(fake), [-0.25] * 4)


def test_feature_matching_by_hand():
    real = [[jnp.array([[1.0, -3.0]]), jnp.array([[4.0]]), jnp.array([[-0.5]])], [jnp.array([[0.0]]), jnp.array([[10.0]])]]
    fake = [[jnp.array([[2.0, -5.0]]), jnp.array([[3.0]]), jnp.array([[-0.5]])], [jnp.array([[4.0]]), jnp.array([[5.0]])]]
    assert adversarial.feature_matching(real, fake) == pytest.approx(((1.5 + 1 + 0) / 3 + (4 + 5) / 2) / 2)
    assert adversarial.feature_matching(real, fake, "relative") == pytest.approx(((1 / 4 + 0) / 2 + 5 / 10) / 2)


@pytest.mark.parametrize("definition", adversarial.DEFINITIONS)
def test_real_features_are_constants(definition):
    rng = np.random.default_rng(0)
    real, fake = ([[jnp.float32(rng.normal(size=(2, 8, 3))) for _ in range(3)]] for _ in range(2))
    of_real, of_fake = jax.grad(lambda r, f: adversarial.feature_matching(r, f, definition), (0, 1))(real, fake)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(of_real))
    assert all(np.any(leaf != 0) for leaf in of_fake[0][1:])
    assert np.any(of_fake[0][0] != 0) == (definition == "absolute")
    silent = [[jnp.zeros_like(r) for r in real[0]]]
    assert np.isfinite(adversarial.feature_matching(silent, fake, definition))
    assert adversarial.feature_matching(silent, silent, definition) == 0
    halves = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (real, fake))
    assert adversarial.feature_matching(*halves, definition).dtype == jnp.float32


def test_another_definition_is_refused():
    with pytest.raises(UserError, match="squared.*absolute, relative"):
        adversarial.feature_matching([], [], "squared")


def test_who_learns_from_what():
    """A generator of one gain and real critics: the critic's step leaves it alone, the generator's step reaches it, through every critic."""
    critics, x = Critics(1, (2,), (), 2), jnp.float32(np.random.default_rng(1).normal(size=(2, 512, 1)))
    shapes = jax.eval_shape(critics.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.float32(rng.uniform(-1, 1, leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5), shapes)

    def judge(params, fake):
        """Real and made sounds as one batch."""
        both = critics.apply({"params": params}, jnp.concatenate([x, fake]))
        return [jax.tree.map(lambda a: a[rows], both) for rows in (slice(None, 2), slice(2, None))]

    def critic_loss(gain, params):
        (real, _), (fake, _) = judge(params, jax.lax.stop_gradient(gain * x[::-1]))
        return adversarial.hinge_critic(real, fake) + adversarial.least_squares_critic(real, fake)

    def generator_loss(gain, params):
        (_, real), (fake, features) = judge(params, gain * x[::-1])
        return adversarial.hinge_generator(fake) + adversarial.least_squares_generator(fake) + adversarial.feature_matching(real, features)

    of_gain, of_params = jax.jit(jax.grad(critic_loss, (0, 1)))(0.5, params)
    assert of_gain == 0 and all(np.any(leaf != 0) for leaf in jax.tree.leaves(of_params))
    of_gain = jax.jit(jax.grad(generator_loss))(0.5, params)
    step = (generator_loss(0.51, params) - generator_loss(0.49, params)) / 0.02
    assert of_gain == pytest.approx(float(step), rel=0.02) and of_gain != 0
