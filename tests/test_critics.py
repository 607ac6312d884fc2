"""Critics: sizes of the published models, layers against SciPy, what the periods and spectra read, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from vae_jax.config import UserError
from vae_jax.models.critics import Critics, Periodic, Spectral, Strided

PERIODS, WINDOWS = (2, 3, 5, 7, 11), (2048, 1024, 512, 256, 128)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def made(module, x):
    """(parameters, the result); drawn here, since compiling a draw for each parameter takes longer than the tests"""
    rng = np.random.default_rng(9)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.float32(rng.uniform(-1, 1, leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5), shapes)
    return params, jax.jit(module.apply)({"params": params}, x)


@pytest.mark.parametrize(
    "settings,count,published",
    [
        (dict(capacity=64), 7_748_739, 7_751_619),  # v1
        (dict(capacity=96), 17_429_187, 17_433_507),
        (dict(scales=0, periods=PERIODS, capacity=96), 9_690_245, 9_697_445),
        (dict(periods=PERIODS, capacity=96), 27_119_432, 27_130_952),  # v2
        (dict(periods=PERIODS, capacity=48), None, 6_791_720),  # v2_small
        (dict(periods=PERIODS, capacity=64), None, 12_066_184),  # v2_nopqmf
        (dict(capacity=16), 485_667, 486_387),  # raspberry
        (dict(scales=0, resolutions=(4096, 2048, 1024, 512, 256)), 471_685, 472_490),
        (dict(capacity=96, resolutions=(4096, 2048, 1024, 512, 256)), None, 17_905_997),  # with the spectral critic
    ],
)
def test_counts_are_those_of_the_published_models(settings, count, published):
    """Weight normalisation has a gain for each filter; the convolutions of one tap at the end of the strided nets were not normalised."""
    module = Critics(**settings)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8192, 1))))["params"]
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    gains = sum(size for path, size in sizes.items() if "bias" in path and ("window" in path or "bias_4" not in path))
    assert count in (None, sum(sizes.values()))
    assert sum(sizes.values()) + gains == published


def test_layers_of_a_strided_net():
    x = noise(0, 2, 301, 2)
    params, layers = made(Strided(3, 15), x)
    assert [y.shape for y in layers] == [(2, 76, 3), (2, 19, 6), (2, 5, 12), (2, 2, 24), (2, 2, 1)]
    h = np.asarray(x, np.float64)
    for i, found in enumerate(layers):
        kernel = np.asarray(params[f"kernel_{i}"], np.float64)
        around, stride = len(kernel) // 2, 4 if i < 4 else 1
        padded = np.pad(h, ((0, 0), (around, around), (0, 0)))
        wanted = np.stack([scipy.signal.correlate(padded, kernel[None, :, :, n], "valid")[:, ::stride, 0] for n in range(kernel.shape[2])], -1)
        wanted = wanted + np.asarray(params[f"bias_{i}"])
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        h = np.where(wanted > 0, wanted, 0.2 * wanted)


def test_scales_read_means_of_pairs():
    x = noise(1, 1, 1001, 1)
    critics = Critics(scales=3, capacity=2)
    params, (scores, features) = made(critics, x)
    for i, step in enumerate((1, 2, 4)):
        pooled = np.asarray(x)[:, : 1001 // step * step].reshape(1, -1, step).mean(2)[..., None]
        wanted = Strided(2, 15).apply({"params": params[f"scale_{i}"]}, jnp.asarray(pooled))
        for one, other in zip(features[i], wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(features[i][-1], scores[i])


def test_a_period_reads_its_own_phase_only():
    x = noise(2, 2, 1000, 1)
    params, layers = made(Periodic(7, 2), x)
    assert [y.shape for y in layers] == [(2, 7, 36, 2), (2, 7, 9, 4), (2, 7, 3, 8), (2, 7, 1, 16), (2, 7, 1, 1)]
    alone = Strided(2, 5).apply({"params": params["net"]}, x[1:, 3::7])
    for y, wanted in zip(layers, alone, strict=True):
        np.testing.assert_allclose(y[1, 3], wanted[0], atol=1e-5)


def test_the_spectral_critic_reads_complex_spectra():
    """Its first layer, of kernels that pass one channel on, is SciPy's STFT; noise of variance 1 has spectra of variance 1."""
    x = noise(3, 2, 5000, 1)
    module = Spectral(512)
    params, layers = made(module, x)
    frames = 1 + (5000 - 512) // 128
    assert [y.shape[1:] for y in layers] == [(frames, 257, 32), (frames, 129, 32), (frames, 65, 32), *[(frames, 33, 32)] * 2, (frames, 33, 1)]
    passing = np.zeros((3, 9, 2, 32), np.float32)
    passing[1, 4, 0, 0] = passing[1, 4, 1, 1] = 1
    first = module.apply({"params": {**params, "kernel_0": passing, "bias_0": jnp.zeros(32)}}, x)[0]
    window = scipy.signal.get_window("hann", 512)
    wanted = scipy.signal.stft(x[..., 0], window=window, nperseg=512, noverlap=384, boundary=None, padded=False)[2]
    wanted *= window.sum() / np.sqrt(np.sum(window**2))
    np.testing.assert_allclose(first[..., 0] + 1j * first[..., 1], wanted.swapaxes(1, 2), atol=1e-4)
    assert abs(float(jnp.mean(first[..., 0] ** 2 + first[..., 1] ** 2)) - 1) < 0.05


def test_examples_are_judged_apart_and_all_layers_have_gradients():
    """So real and made sounds can share a batch; and silence has a gradient too."""
    critics, x = Critics(2, (2, 3), (256,), 2), noise(4, 3, 2048, 2).at[2].set(0)
    params, (scores, features) = made(critics, x)
    assert [len(layers) for layers in features] == [5, 5, 5, 5, 6]
    alone, _ = jax.jit(critics.apply)({"params": params}, x[1:2])
    for both, one in zip(scores, alone, strict=True):
        np.testing.assert_allclose(both[1:2], one, atol=1e-5)

    def loss(params, x):
        return sum(jnp.sum(jnp.sin(s)) for s in critics.apply({"params": params}, x)[0])

    of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    for gradient in jax.tree.leaves(of_params):
        assert np.all(np.isfinite(gradient)) and np.any(np.asarray(gradient) != 0)
    assert np.all(np.isfinite(of_x)) and np.all(np.any(np.asarray(of_x) != 0, (1, 2)))


def test_half_precision_is_near():
    x = noise(5, 1, 1024, 1)
    settings = dict(scales=1, periods=(3,), resolutions=(256,), capacity=4)
    params, (scores, _) = made(Critics(**settings), x)
    half_scores, _ = jax.jit(Critics(**settings, dtype=jnp.bfloat16).apply)({"params": params}, x)
    for full, half in zip(scores, half_scores, strict=True):
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.03)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="without a critic"):
        made(Critics(scales=0), noise(6, 1, 64, 1))
    with pytest.raises(UserError, match="2048 samples.*1000"):
        made(Critics(resolutions=(2048,)), noise(6, 1, 1000, 1))
