"""Gated PixelCNN: what each position sees, the cached form against the full pass, and draws against a full pass at every position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.config import UserError
from vae_jax.models import pixelcnn
from vae_jax.models.pixelcnn import PixelCNN, generate

K, H, W = 11, 5, 6
SMALL = PixelCNN(K, channels=8, layers=3, first_kernel=5, hidden=16)
LABELLED = SMALL.clone(labels=3)
full = jax.jit(lambda model, params, codes, label=None: model.apply(params, codes, label), static_argnums=0)


def random_codes(b, h=H, w=W, classes=K):
    return jnp.asarray(np.random.default_rng(b).integers(0, classes, (b, h, w)), jnp.int32)


def parameters(model):
    """Of the shapes of `init`, but drawn here: no bias is zero, and the choices are clear."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), random_codes(1), jnp.zeros(1, jnp.int32) if model.labels else None)
    rng = np.random.default_rng(0)
    scale = lambda shape: 1.5 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.5
    return jax.tree.map(lambda x: jnp.asarray(scale(x.shape) * rng.standard_normal(x.shape), jnp.float32), shapes)


@pytest.mark.parametrize("kernels", [(5, 3), (3, 5)])
def test_a_position_changes_the_logits_of_all_later_ones_in_reach_and_of_no_other(kernels):
    model = SMALL.clone(first_kernel=kernels[0], kernel=kernels[1])
    params, codes, n = parameters(model), random_codes(1), H * W
    changed = jnp.where(jnp.eye(n, dtype=bool).reshape(n, H, W), (codes + 1) % K, codes)  # map p differs at position p alone
    difference = np.abs(full(model, params, changed) - full(model, params, codes)).max(-1).reshape(n, n)  # [changed, seen]
    p, q = np.mgrid[:n, :n]
    assert (difference[q <= p] < 1e-6).all()
    rows, columns = q // W - p // W, q % W - p % W
    reach = kernels[0] // 2 + 2 * (kernels[1] // 2)
    seen = (p < q) & (rows <= reach) & (np.abs(columns) <= reach)
    assert (difference[seen] > 1e-5).all() and (difference[(p < q) & ~seen] < 1e-6).all()


def test_codebooks_that_take_turns_have_embeddings_of_their_own():
    model = SMALL.clone(slots=3)
    params, codes = parameters(model), random_codes(2)
    one = PixelCNN(3 * K, channels=8, layers=3, first_kernel=5, hidden=16)
    wider = {name: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2 * K)]) for name, x in params["params"]["out"].items()}
    apart = {**params["params"], "out": wider}
    expected = full(one, {"params": apart}, codes + K * (jnp.arange(W) % 3))[..., :K]
    np.testing.assert_allclose(full(model, params, codes), expected, atol=1e-6)


def test_receptive_field_is_the_formula_without_a_blind_spot():
    """By gradient, exactly: each position has a code of its own, so the gradient for a row of the embedding is that for a position."""
    h = w = 13
    model = PixelCNN(h * w, channels=4, layers=3, first_kernel=5, hidden=4)
    params, codes = parameters(model), jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w)

    @jax.jit
    @jax.grad
    def slope(table, position):
        return jnp.abs(model.apply({"params": {**params["params"], "codes": table}}, codes)).sum(-1).reshape(-1)[position]

    for i, j in [(0, 0), (12, 6), (9, 6), (6, 0), (7, 12), (2, 5)]:
        got = np.abs(slope(params["params"]["codes"], i * w + j)).max(-1).reshape(h, w) > 0
        rows, columns = np.mgrid[:h, :w]
        above = (rows < i) & (rows >= i - model.reach) & (np.abs(columns - j) <= model.reach)
        left = (rows == i) & (columns < j) & (columns >= j - model.reach)
        np.testing.assert_array_equal(got, above | left)
    assert model.reach == 4


def test_full_pass_equals_masked_convolutions():
    """The paper's form: whole kernels, of which a mask leaves the half that is ours, on a map that is not shifted."""

    def masked(x, kernel, size):
        kernel = np.pad(kernel, [(0, whole - part) for whole, part in zip(size, kernel.shape)] + [(0, 0)] * 2)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gate(x):
        a, b = np.split(np.asarray(x), 2, -1)
        return np.tanh(a) / (1 + np.exp(-b))

    params, codes, label = parameters(LABELLED), random_codes(3), np.array([2, 0, 1])
    p = jax.tree.map(np.asarray, params["params"])
    dense = lambda x, name, layer=p: x @ layer[name]["kernel"] + layer[name]["bias"]
    v = h = p["codes"][codes]
    for i in range(LABELLED.layers):
        layer, k = p[f"stack_{i}"], 3 if i else 5
        to_vertical, to_horizontal = np.split(layer["label"]["embedding"][label][:, None, None], 2, -1)
        x = masked(v, layer["kernel_vertical"], (k, k)) + layer["bias_vertical"]
        y = masked(h, layer["kernel_horizontal"], (1, k)) + dense(x, "link", layer) + to_horizontal
        v, y = gate(x + to_vertical), dense(gate(y), "mix", layer)
        h = h + y if i else y
    logits = dense(np.maximum(dense(np.maximum(h, 0), "head"), 0), "out")
    np.testing.assert_allclose(full(LABELLED, params, codes, jnp.asarray(label)), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernel", [(2, 3), (1, 2), (3, 7), (4, 8)])  # the last one covers all of x
def test_patches_equal_the_librarys_convolution(kernel, monkeypatch):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in [(2, 4, 8, 3), (*kernel, 3, 5)])
    patches = pixelcnn._convolve(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(patches, pixelcnn._convolve(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [
    LABELLED, SMALL.clone(first_kernel=7, kernel=5, layers=2), SMALL.clone(first_kernel=3, layers=1), LABELLED.clone(layers=2, dtype=jnp.bfloat16),
    SMALL.clone(slots=2)
], ids=["labels", "wide kernels", "one layer", "bfloat16", "slots"])
def test_steps_equal_the_full_pass(model):
    params, codes = parameters(model), random_codes(4)
    label = jnp.array([2, 0, 1, 1]) if model.labels else None
    start, step = jax.jit(lambda p: pixelcnn.start(model, p, 4, W, label)), jax.jit(lambda *a: pixelcnn.step(model, *a))
    state, logits = start(params), []
    previous = jnp.full(4, 7, jnp.int32)  # which the first position must not see
    for code in codes.reshape(4, -1).T:
        state, of_position = step(params, state, previous)
        logits.append(of_position)
        previous = code
    expected = full(model, params, codes, label)
    assert expected.dtype == of_position.dtype == jnp.float32
    tolerance = 0.2 if model.dtype == jnp.bfloat16 else 2e-5
    np.testing.assert_allclose(np.stack(logits, 1).reshape(expected.shape), expected, rtol=0, atol=tolerance)


def naive(model, params, key, codes, mask, label=None, temperature=1.0, top_k=None):
    """Draws by a full pass at each position, in NumPy as far as it goes: a random number is looked up in the cumulative probabilities."""
    codes = np.where(mask, codes, 0)
    for p in range(H * W):
        at = slice(None), p // W, p % W
        logits = np.asarray(full(model, params, jnp.asarray(codes), label))[at]
        order = np.argsort(-logits, -1, kind="stable")[:, :top_k] if top_k else np.broadcast_to(np.arange(K), logits.shape)
        weights = np.exp((np.take_along_axis(logits, order, -1) - logits.max(-1, keepdims=True)) / max(temperature, 1e-6))
        cumulative = np.cumsum(weights, -1)
        uniform = np.asarray(jax.random.uniform(jax.random.fold_in(key, p), (len(codes),)))[:, None]
        best = (cumulative > uniform * cumulative[:, -1:]).argmax(-1)
        codes[at] = np.where(mask[at], codes[at], np.take_along_axis(order, best[:, None], -1)[:, 0])
    return codes


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 4}, {"temperature": 0.0}], ids=["all", "top 4", "greedy"])
def test_generate_equals_a_full_pass_at_every_position(options):
    params, key, label = parameters(LABELLED), jax.random.key(5), jnp.array([0, 1, 2])
    expected = naive(LABELLED, params, key, np.zeros((3, H, W), int), np.zeros((3, H, W), bool), label, **options)
    drawn = generate(LABELLED, params, key, (3, H, W), label, **options)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(drawn, generate(LABELLED, params, key, (3, H, W), label, **options))
    other = generate(LABELLED, params, jax.random.key(6), (3, H, W), label, **options)
    assert (np.asarray(other) == drawn).all() == (options.get("temperature") == 0)


def test_completion_keeps_what_is_given_and_draws_the_rest_to_fit():
    params, key, codes, label = parameters(LABELLED), jax.random.key(3), np.asarray(random_codes(3)), jnp.array([0, 1, 2])
    mask = np.random.default_rng(1).random((3, H, W)) < 0.5
    mask[2] = True
    drawn = np.asarray(generate(LABELLED, params, key, (3, H, W), label, codes_bhw=jnp.asarray(codes), mask_bhw=jnp.asarray(mask)))
    assert (drawn[mask] == codes[mask]).all() and (drawn[~mask] != codes[~mask]).any()
    np.testing.assert_array_equal(drawn, naive(LABELLED, params, key, codes, mask, label))


def test_temperature_is_of_each_map_and_near_zero_as_zero():
    params, key, label = parameters(LABELLED), jax.random.key(2), jnp.array([1, 1, 1])
    drawn = lambda *temperature: np.asarray(generate(LABELLED, params, key, (3, H, W), label, jnp.array(temperature)))
    mixed, cold = drawn(0.0, 1e-6, 1.0), drawn(0.0, 0.0, 0.0)
    np.testing.assert_array_equal(mixed[:2], cold[:2])
    np.testing.assert_array_equal(cold[0], cold[1])
    assert (mixed[2] != cold[2]).any()


def test_the_label_reaches_every_position():
    params, codes = parameters(LABELLED), random_codes(1)
    logits = [full(LABELLED, params, codes, jnp.array([label])) for label in range(3)]
    assert (np.abs(logits[0] - logits[1]).max(-1) > 1e-3).all() and (np.abs(logits[0] - logits[2]).max(-1) > 1e-3).all()


def test_a_code_outside_the_classes_is_not_taken_for_another():
    assert np.isnan(full(LABELLED, parameters(LABELLED), random_codes(1).at[0, 0, 0].set(K), jnp.array([0]))).any()


@pytest.mark.parametrize("call, sentence", [
    (lambda: SMALL.init(jax.random.key(0), random_codes(1), jnp.zeros(1, jnp.int32)), "give it no label"),
    (lambda: LABELLED.init(jax.random.key(0), random_codes(1)), "of 3 labels: give one"),
    (lambda: PixelCNN(K, kernel=4).init(jax.random.key(0), random_codes(1)), "odd numbers"),
    (lambda: generate(SMALL, parameters(SMALL), jax.random.key(0), (1, H, W), top_k=K + 1), "from 1 to 11"),
])
def test_mistakes_are_sentences(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
