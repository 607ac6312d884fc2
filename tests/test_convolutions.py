"""The CPU forms against lax's convolutions and a plain loop: values and every gradient, and the same parameters in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vae_jax.layers import convolutions


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def both(f, reference, *arguments):
    """Values and vector-Jacobian products of two functions agree."""
    shape = jax.eval_shape(reference, *arguments)
    dy = draw(9, *shape.shape)

    def measure(f):
        y, pull = jax.vjp(f, *arguments)
        return y, pull(dy)

    (y, gradients), (y_reference, gradients_reference) = jax.jit(lambda: (measure(f), measure(reference)))()
    assert y.shape == shape.shape and y.dtype == shape.dtype
    np.testing.assert_allclose(y, y_reference, rtol=2e-5, atol=2e-5)
    for got, expected in zip(gradients, gradients_reference, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def lax_conv(x, kernel, bias, stride):
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=convolutions.NHWC) + bias


@pytest.mark.parametrize("size, kernel, stride, channels, features", [
    ((8, 6), 3, 2, 1, 5), ((7, 9), 3, 2, 3, 4), ((5, 8), 3, 2, 5, 2), ((1, 3), 3, 2, 3, 4),
    ((8, 6), 3, 1, 1, 5), ((7, 9), 3, 1, 5, 2), ((5, 8), 1, 1, 3, 4),
    ((8, 6), 4, 2, 3, 4), ((7, 9), 4, 2, 1, 5), ((7, 8), 5, 3, 3, 2),
])
def test_conv_equals_lax(size, kernel, stride, channels, features):
    x, weights, bias = draw(0, 3, *size, channels), draw(1, kernel, kernel, channels, features), draw(2, features)
    both(lambda *a: convolutions.conv(*a, stride), lambda *a: lax_conv(*a, stride), x, weights, bias)


@pytest.fixture(params=[1, 4])
def devices(request, monkeypatch):
    """The kernel gradient is summed in another way when there are several devices."""
    monkeypatch.setattr(jax, "device_count", lambda: request.param)


@pytest.mark.parametrize("size, channels, features", [((8, 6), 1, 3), ((7, 9), 3, 2), ((1, 8), 8, 1)])
def test_up_equals_transposed_convolution(devices, size, channels, features):
    def reference(x, kernel, bias):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=convolutions.NHWC) + bias

    both(convolutions.up, reference, draw(0, 3, *size, channels), draw(1, 4, 4, channels, features), draw(2, features))


def test_conv_equals_a_loop_over_pixels():
    x, kernel, bias = np.asarray(draw(0, 2, 5, 6, 3)), np.asarray(draw(1, 3, 3, 3, 2)), np.asarray(draw(2, 2))
    padded, expected = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros((2, 3, 3, 2))
    for i, j in np.ndindex(3, 3):
        expected[:, i, j] = np.tensordot(padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel, 3) + bias
    np.testing.assert_allclose(convolutions.conv(x, kernel, bias, 2), expected, rtol=1e-5, atol=1e-5)


def test_up_equals_a_loop_over_pixels():
    """Each input pixel adds its 4x4 patch of the mirrored kernel, as PyTorch defines ConvTranspose2d(4, 2, 1)."""
    x, kernel, bias = np.asarray(draw(0, 2, 3, 4, 3)), np.asarray(draw(1, 4, 4, 3, 2)), np.asarray(draw(2, 2))
    full = np.zeros((2, 8, 10, 2))
    for i, j in np.ndindex(3, 4):
        full[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bc,klcn->bkln", x[:, i, j], kernel[::-1, ::-1])
    np.testing.assert_allclose(convolutions.up(x, kernel, bias), full[:, 1:-1, 1:-1] + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [convolutions.Conv(4, 3, 2), convolutions.Conv(2, 4, 2), convolutions.Up(4), convolutions.Up(1)])
def test_forms_share_parameters(devices, layer, monkeypatch):
    """What a GPU or TPU traces equals what a CPU traces, in values and gradients, from the same parameters."""
    x = draw(0, 3, 7, 6, 3)
    params = layer.init(jax.random.key(0), x)

    def measure(params, x):
        y = layer.apply(params, x)
        return jnp.vdot(y, draw(1, *y.shape)), y

    cpu = jax.jit(jax.value_and_grad(measure, (0, 1), has_aux=True))(params, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    library = jax.jit(jax.value_and_grad(lambda *a: measure(*a), (0, 1), has_aux=True))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), cpu, library)


def test_second_derivative(devices):
    """A gradient penalty differentiates twice."""
    x, kernel, bias = draw(0, 2, 5, 6, 2), draw(1, 3, 3, 2, 3), draw(2, 3)

    def penalty(f):
        return lambda kernel: (jax.grad(lambda x: (f(x, kernel, bias, 2) ** 2).sum())(x) ** 2).sum()

    got, expected = jax.jit(lambda k: (jax.grad(penalty(convolutions.conv))(k), jax.grad(penalty(lax_conv))(k)))(kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-2)


def test_to_vector_and_back_are_channel_major():
    x = draw(0, 2, 3, 4, 5)
    layer = convolutions.ToVector(6)
    params = layer.init(jax.random.key(0), x)["params"]
    expected = np.transpose(x, (0, 3, 1, 2)).reshape(2, -1) @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)

    layer, z = convolutions.ToImage((3, 4, 5)), draw(1, 2, 6)
    params = layer.init(jax.random.key(0), z)["params"]
    expected = (np.asarray(z) @ params["kernel"] + params["bias"]).reshape(2, 5, 3, 4).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layer.apply({"params": params}, z), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    x = draw(0, 2, 8, 8, 3)
    for make in (lambda **k: convolutions.Conv(4, 3, 2, **k), lambda **k: convolutions.Up(2, **k), lambda **k: convolutions.ToVector(4, **k)):
        params = make().init(jax.random.key(0), x)
        exact, rounded = jax.jit(lambda p: (make().apply(p, x), make(dtype=jnp.bfloat16).apply(p, x)))(params)
        assert exact.dtype == jnp.float32 and rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(exact, rounded.astype(jnp.float32), atol=0.05)
        gradients = jax.jit(jax.grad(lambda p: make(dtype=jnp.bfloat16).apply(p, x).astype(jnp.float32).sum()))(params)
        assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


def test_parameters_start_as_pytorch_does():
    params = convolutions.Conv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    bound = (9 * 32) ** -0.5
    assert abs(params["kernel"]).max() <= bound and abs(params["bias"]).max() <= bound
    np.testing.assert_allclose(params["kernel"].std(), bound / 3**0.5, rtol=0.02)
    up = convolutions.Up(8).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    np.testing.assert_allclose(up["kernel"].std(), (16 * 8) ** -0.5 / 3**0.5, rtol=0.03)


def test_batch_may_be_split_over_devices():
    """The split batch stays split: no all-gather, only the sums of the parameters' gradients cross devices."""
    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p)) for p in (("data",), ()))
    x, kernel, bias = draw(0, 8, 8, 8, 3), draw(1, 4, 4, 3, 4), draw(2, 4)

    def loss(kernel, bias, x):
        return (convolutions.up(x, kernel, bias) ** 2).sum()

    step = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(whole, whole, rows), out_shardings=whole)
    expected = jax.grad(loss, (0, 1))(kernel, bias, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), step(kernel, bias, x), expected)
    assert "all-gather" not in step.lower(kernel, bias, x).compile().as_text()


def test_batch_size_may_be_symbolic():
    """Exports leave the batch open."""
    (b,) = jax.export.symbolic_shape("b")
    kernel, bias = draw(1, 4, 4, 3, 4), draw(2, 4)
    exported = jax.export.export(jax.jit(convolutions.up))(
        jax.ShapeDtypeStruct((b, 6, 5, 3), jnp.float32), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (kernel, bias)))
    x = draw(0, 7, 6, 5, 3)
    np.testing.assert_allclose(exported.call(x, kernel, bias), convolutions.up(x, kernel, bias), rtol=1e-5, atol=1e-5)


def test_kernel_smaller_than_stride_is_refused():
    with pytest.raises(ValueError, match="smaller than stride"):
        convolutions.conv(draw(0, 1, 6, 6, 1), draw(1, 1, 1, 1, 1), draw(2, 1), 2)
