"""Latent analysis against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import scipy.stats
import sklearn.decomposition
import sklearn.metrics

from vae_jax.latents import paths, pca, probes, statistics


def planted(n=400, d=12, rank=3, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    return 2 + (rng.standard_normal((n, rank)) * np.arange(rank + 2, 2, -1)) @ basis, basis


@pytest.mark.parametrize("shape", [(300, 20), (15, 40)])  # scatter matrix, and more columns than rows
def test_pca_equals_sklearn(shape):
    x = np.random.default_rng(1).standard_normal(shape) * np.linspace(3, 0.5, shape[1])
    ours, theirs = pca.fit(x, 5), sklearn.decomposition.PCA(5, svd_solver="full").fit(x)
    np.testing.assert_allclose(ours.singular_values, theirs.singular_values_, rtol=1e-9)
    np.testing.assert_allclose(pca.explained(ours), theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(ours.components * theirs.components_, 1)), 1, rtol=1e-9)
    assert (np.take_along_axis(ours.components, np.abs(ours.components).argmax(1)[:, None], 1) > 0).all()
    back = pca.reconstruct(ours, pca.project(ours, x))
    np.testing.assert_allclose(back, theirs.inverse_transform(theirs.transform(x)), atol=1e-9)
    np.testing.assert_allclose(pca.errors(ours, x), ((x - back) ** 2).mean(1), atol=1e-12)
    np.testing.assert_allclose(pca.errors(ours, x, 0), ((x - x.mean(0)) ** 2).mean(1), atol=1e-12)


def test_pca_by_rows_more_than_4096_equals_scatter_form(monkeypatch):
    pictures = np.random.default_rng(2).integers(0, 256, (200, 6, 5, 1), np.uint8)
    pictures[:, :3] //= 8
    whole = pca.fit(pictures)
    monkeypatch.setattr(pca, "_EXACT", 10)
    monkeypatch.setattr(pca, "_CHUNK_BYTES", 8 * 30 * 7)  # chunks of seven rows
    some = pca.fit(pictures, 2)
    np.testing.assert_allclose(some.singular_values, whole.singular_values[:2], rtol=0.02)
    assert np.isclose(some.total, whole.total)
    strong = planted(200, 30, 3)[0]
    assert pca.angles(pca.fit(strong, 3).components, sklearn.decomposition.PCA(3).fit(strong).components_).max() < 1e-4
    again = pca.fit(pictures, 2)
    np.testing.assert_array_equal(some.components, again.components)


def test_pca_reads_uint8_as_unit_pixels():
    pictures = np.random.default_rng(3).integers(0, 256, (50, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(pca.errors(pca.fit(pictures, 3), pictures), pca.errors(pca.fit(pictures / 255, 3), pictures / 255), rtol=1e-9)


def test_pca_of_one_row_or_of_nan_is_refused():
    with pytest.raises(ValueError, match="two rows"):
        pca.fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="finite"):
        pca.fit(np.array([[1.0, np.nan], [0, 1]]))


def test_planted_rank_is_found_and_fidelity_rises():
    x, basis = planted()
    fitted = pca.fit(x)
    assert pca.rank(fitted) == 3
    assert pca.angles(fitted.components[:3], basis).max() < 1e-3
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    for kind, weights in (("variance", s**2), ("singular", s)):
        curve = pca.fidelity(fitted, kind)
        np.testing.assert_allclose(curve, np.cumsum(weights) / weights.sum(), atol=1e-6)
        assert (np.diff(curve) >= 0).all() and pca.dimensions(curve, 1.0 - 1e-6) == 3
    assert pca.dimensions(np.array([0.5, 0.8, 0.95, 1.0]), 0.8) == 2  # a count, not an index
    assert pca.dimensions(np.array([0.5, 0.8, 0.95, 1.0]), 0.81) == 3
    with pytest.raises(ValueError, match="k=None"):
        pca.fidelity(pca.fit(x, 2), "singular")
    with pytest.raises(ValueError, match="kind"):
        pca.fidelity(fitted, "energy")


def test_angles_in_degrees():
    tilt = np.radians(30)
    np.testing.assert_allclose(pca.angles(np.array([[1.0, 0, 0]]), np.array([[np.cos(tilt), np.sin(tilt), 0]])), [30], atol=1e-9)


def test_paths_start_and_end_where_asked():
    a, b = np.array([3.0, 0, 0]), np.array([0, 3.0, 0])
    for path in (paths.lerp, paths.slerp):
        z = path(a, b, 7)
        assert z.shape == (7, 3)
        np.testing.assert_allclose(z[[0, -1]], [a, b], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(paths.slerp(a, b, 7), axis=1), 3, atol=1e-12)
    np.testing.assert_allclose(paths.slerp(a, b, 3)[1], [3 / np.sqrt(2)] * 2 + [0])
    np.testing.assert_allclose(paths.lerp(a, b, 3)[1], [1.5, 1.5, 0])


@pytest.mark.parametrize("a, b", [([0.0, 0], [1.0, 2]), ([1.0, 1], [2.0, 2]), ([1.0, 2], [-1.0, -2]), ([1.0], [-2.0])])
def test_slerp_without_a_great_circle_is_straight(a, b):
    np.testing.assert_allclose(paths.slerp(a, b, 5), paths.lerp(a, b, 5))


def test_step_ratio():
    level = np.arange(6.0)[:, None, None, None] * np.ones((1, 2, 2, 1))
    assert np.isclose(paths.step_ratio(level), 1)
    level[3:] += 4  # one step of five units among steps of one
    assert np.isclose(paths.step_ratio(level), 5)
    assert paths.step_ratio(np.zeros((4, 2, 2, 1))) == 1
    assert paths.step_ratio(np.repeat([0.0, 1.0], 4)[:, None]) == np.inf


def test_manifold_is_the_inverse_cdf_row_by_row_from_the_top_left():
    codes = paths.manifold(paths.plane(np.zeros((5, 2))), 15).reshape(15, 15, 2)
    z = scipy.stats.norm.ppf(np.linspace(0.05, 0.95, 15))
    np.testing.assert_allclose(codes[4, :, 0], z)
    np.testing.assert_allclose(codes[:, 7, 1], z[::-1])
    assert paths.manifold(paths.plane(np.zeros((5, 1))), 6).shape == (6, 1)


def test_plane_of_a_wide_code_is_the_means_principal_plane():
    x, basis = planted(rank=2)
    found = paths.plane(x)
    np.testing.assert_allclose(found.origin, x.mean(0))
    assert pca.angles(found.axes, basis).max() < 1e-4
    inside = (x - found.origin) @ np.linalg.pinv(found.axes)
    np.testing.assert_allclose(inside.std(0, ddof=1), 1, rtol=1e-6)
    assert "principal" in found.name
    assert "principal" in paths.plane(x[:, :2], prior=False).name and paths.plane(x[:, :2]).name == "the two latent axes"


def test_neighbour_ratio_by_hand_and_for_noise():
    ramp = np.add.outer(np.arange(4.0), np.arange(4.0)).reshape(16, 1)
    pairs = [abs(ramp[i, 0] - ramp[j, 0]) for i in range(16) for j in range(i)]
    assert np.isclose(paths.neighbour_ratio(ramp, 4), 1 / np.mean(pairs))
    noise = np.random.default_rng(0).random((400, 8, 8, 1))
    assert 0.95 < paths.neighbour_ratio(noise, 20) < 1.05
    assert np.isnan(paths.neighbour_ratio(np.ones((4, 2)), 2))


def test_traversals_move_one_dimension():
    codes = paths.traversals(np.array([1.0, 2, 3]), np.array([1.0, 0.5, 2]), [2, 0], 5, reach=2).reshape(2, 5, 3)
    np.testing.assert_allclose(codes[0, :, 2], 3 + np.linspace(-4, 4, 5))
    np.testing.assert_allclose(codes[1, :, 0], 1 + np.linspace(-2, 2, 5))
    np.testing.assert_allclose(codes[0, :, :2], [[1, 2]] * 5)


def test_active_units_and_kl():
    rng = np.random.default_rng(4)
    mean = rng.standard_normal((5000, 3)) * [1, 0.05, 0.2]
    np.testing.assert_array_equal(statistics.active_units(mean), [True, False, True])
    logvar = rng.standard_normal((5000, 3)) * 0.1 - 1
    # cross-entropy less entropy
    cross = 0.5 * np.log(2 * np.pi) + 0.5 * (mean**2 + np.exp(logvar)).mean(0)
    own = np.mean(scipy.stats.norm.entropy(0, np.exp(0.5 * logvar)), 0)
    np.testing.assert_allclose(statistics.kl_per_dimension(mean, logvar), cross - own, rtol=1e-9)


def test_draws_and_moments():
    mean, logvar = np.tile([[1.0, -2.0]], (40_000, 1)), np.tile(np.log([[0.25, 4.0]]), (40_000, 1))
    found = statistics.moments(statistics.draw(mean, logvar, seed=1))
    np.testing.assert_allclose(found["mean"], [1, -2], atol=4 * 2 / 200)
    np.testing.assert_allclose(found["sd"], [0.5, 2], rtol=0.02)
    z = np.random.default_rng(5).gamma(2.0, size=(1000, 2))
    found = statistics.moments(z)
    np.testing.assert_allclose(found["skew"], scipy.stats.skew(z))
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(z))
    assert np.isfinite(statistics.moments(np.ones((5, 1)))["kurtosis"]).all()


def test_mutual_information_of_a_linear_gaussian_code():
    """z | x ~ N(a x, s^2), x ~ N(0, 1) has I = log(1 + a^2 / s^2) / 2 a dimension."""
    rng = np.random.default_rng(6)
    slopes, noise = np.array([1.0, 0.5]), np.array([0.5, 1.0])
    mean = rng.standard_normal((4000, 2)) * slopes
    found, error = statistics.mutual_information(mean, np.broadcast_to(2 * np.log(noise), mean.shape))
    assert abs(found - 0.5 * np.log1p(slopes**2 / noise**2).sum()) < 4 * error + 0.01
    assert 0 < error < 0.03


def test_mutual_information_bounds(monkeypatch):
    mean = np.random.default_rng(7).standard_normal((300, 4)) * 100
    assert np.isclose(statistics.mutual_information(mean, np.full((300, 4), -14.0))[0], np.log(300))  # codes apart: all of log n
    assert abs(statistics.mutual_information(np.zeros((300, 4)), np.zeros((300, 4)))[0]) < 1e-6  # one code for all: nothing
    logvar = np.random.default_rng(8).standard_normal((300, 4))
    whole = statistics.mutual_information(mean / 100, logvar)
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 8 * 300 * 7)
    np.testing.assert_allclose(statistics.mutual_information(mean / 100, logvar), whole)


def test_standard_error():
    values = np.random.default_rng(9).standard_normal(50)
    assert np.isclose(statistics.standard_error(values), scipy.stats.sem(values))
    assert np.isnan(statistics.standard_error([1.0]))


def clusters(n=300, d=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    return rng.standard_normal((n, d)) + 5 * np.eye(d)[label], label


def test_probes_find_clusters_and_not_noise():
    (train, train_label), (test, test_label) = clusters(), clusters(seed=1)
    assert np.isclose(probes.silhouette(train, train_label), sklearn.metrics.silhouette_score(train, train_label))
    assert probes.knn_accuracy(train, train_label, test, test_label) > 0.97
    found = probes.linear_probe(train, train_label, test, test_label, (10, 0))
    assert found[0] > 0.97 and found[10] > 0.8
    noise = np.random.default_rng(2).standard_normal(train.shape)
    assert abs(probes.linear_probe(noise, train_label, noise[::-1], test_label)[0] - 1 / 3) < 0.12
    assert np.isnan(probes.silhouette(train, np.zeros(300))) and np.isnan(probes.silhouette(train[:3], np.arange(3)))
    assert np.isfinite(probes.silhouette(train, train_label, limit=50))


def test_a_grouped_probe_sees_no_group_twice():
    """Codes that tell the recording and nothing of the class: a split by example finds the class, a split by recording does not."""
    group = np.repeat(np.arange(40), 10)
    label, code = np.random.default_rng(3).integers(0, 2, 40)[group], np.eye(40)[group]
    assert probes.linear_probe(code[::2], label[::2], code[1::2], label[1::2])[0] == 1.0
    assert probes.grouped_probe(code, label, group) < 0.8
    assert probes.grouped_probe(label[:, None].astype(float), label, [f"take {g}" for g in group]) == 1.0
    assert np.isnan(probes.grouped_probe(code, group == 0, group))  # one class has a single recording


def test_subset_is_even_over_classes():
    label = np.array([0] * 100 + [1] * 10 + [2] * 3)
    chosen = probes.subset(label, 12)
    np.testing.assert_array_equal(np.bincount(label[chosen]), [5, 4, 3])
    assert len(set(chosen)) == 12
    np.testing.assert_array_equal(probes.subset(label, 12), chosen)
    assert len(probes.subset(label, 0)) == len(probes.subset(label, 500)) == 113


def test_factor_correlation():
    rng = np.random.default_rng(10)
    z, direction = rng.standard_normal((500, 2)), np.array([0.6, 0.8])
    factors = np.column_stack([z @ direction + 0.1 * rng.standard_normal(500), rng.standard_normal(500), np.ones(500)])
    correlation, found = probes.factor_correlation(z[:250], factors[:250], z[250:], factors[250:])
    assert correlation[0] > 0.99 and abs(correlation[1]) < 0.2 and correlation[2] == 0
    assert abs(found[0] @ direction) > 0.999
