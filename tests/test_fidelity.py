"""Fidelity of a latent space against NumPy's SVD, planted ranks and the identities that cutting a code down must keep."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.config import UserError
from vae_jax.latents import fidelity


def planted(frames=2000, d=24, rank=5, noise=0.0, seed=0, offset=0.3):
    """Frames float32 [frames, d] that vary along `rank` directions of falling strength, and what they would be without noise."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    clean = offset + (rng.standard_normal((frames, rank)) * np.linspace(2, 0.7, rank)) @ basis
    return (clean + noise * rng.standard_normal((frames, d))).astype(np.float32), basis


def test_fit_is_the_svd_of_the_centred_frames_however_they_come():
    z = (np.random.default_rng(0).standard_normal((600, 16)) * np.linspace(3, 0.1, 16) + 100).astype(np.float32)
    found = fidelity.fit(z)
    exact = z.astype(np.float64) - z.mean(0, dtype=np.float64)
    left, singular, right = np.linalg.svd(exact, full_matrices=False)
    np.testing.assert_allclose(found.mean, z.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.singular_values, singular, rtol=1e-7)
    np.testing.assert_allclose(np.abs((found.components * right).sum(1)), 1, atol=1e-7)
    assert found.count == 600 and (np.take_along_axis(found.components, np.abs(found.components).argmax(1)[:, None], 1) > 0).all()
    for parts in ([z[:1], z[1:7], z[7:]], z.reshape(20, 30, 16), iter(np.split(jnp.asarray(z), 50))):
        again = fidelity.fit(parts)
        assert again.count == 600
        for one, other in zip(again[:3], found[:3]):
            np.testing.assert_allclose(one, other, atol=1e-8)


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_few_frames_give_a_whole_basis_and_come_back_exactly(frames):
    z = np.random.default_rng(frames).standard_normal((1, frames, 10)).astype(np.float32)
    found = fidelity.fit(z)
    assert fidelity.rank(found) == frames - 1
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(10), atol=1e-12)
    r = fidelity.dims_for(found, 1.0)
    assert r == max(1, frames - 1)
    np.testing.assert_allclose(fidelity.crop(found, z, r), z, atol=1e-5)
    other = np.random.default_rng(99).standard_normal((2, 4, 10)).astype(np.float32)
    np.testing.assert_allclose(fidelity.crop(found, other, 10), other, atol=1e-5)
    for f in (0.01, 0.8, 1.0):
        assert 1 <= fidelity.dims_for(found, f, "variance") <= r


def test_the_same_frame_again_and_again_varies_nowhere():
    found = fidelity.fit(np.full((1000, 6), 0.1))
    assert fidelity.rank(found) == 0 and fidelity.dims_for(found, 0.95) == 1
    np.testing.assert_array_equal(fidelity.curve(found), np.zeros(6))


@pytest.mark.parametrize("d, rank", [(24, 5), (128, 16), (8, 8), (8, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_planted_rank_is_recovered(d, rank, offset):
    z, basis = planted(d=d, rank=rank, offset=offset)
    found = fidelity.fit(z)
    assert fidelity.rank(found) == rank
    for kind in fidelity.KINDS:
        assert fidelity.dims_for(found, 1.0, kind) == rank
    inside = found.components[:rank]
    np.testing.assert_allclose(inside.T @ inside, basis.T @ basis, atol=1e-5)
    np.testing.assert_allclose(fidelity.crop(found, z, rank), z, atol=1e-5 * (1 + offset))


def test_rank_of_noisy_codes_is_found_by_variance_and_the_papers_fidelity_keeps_more():
    z, _ = planted(d=64, rank=6, noise=0.02)
    found = fidelity.fit(z)
    assert fidelity.rank(found) == 64 and fidelity.dims_for(found, 0.99, "variance") == 6
    assert fidelity.dims_for(found, 0.99) > 30
    singular = np.linalg.svd(z.astype(np.float64) - z.mean(0, dtype=np.float64), compute_uv=False)
    for kind, weights in (("singular", singular), ("variance", singular**2)):
        levels = fidelity.curve(found, kind)
        np.testing.assert_allclose(levels, np.cumsum(weights) / weights.sum(), rtol=1e-7)
        assert (np.diff(levels) > 0).all()
        sizes = [fidelity.dims_for(found, f, kind) for f in np.linspace(0.01, 1, 100)]
        assert (np.diff(sizes) >= 0).all() and sizes[-1] == 64
        for f, r in zip(np.linspace(0.01, 1, 100), sizes):  # the least r that reaches f
            assert levels[r - 1] >= f - 1e-9 and (r == 1 or levels[r - 2] < f)


def test_the_index_that_the_public_code_reports_is_one_too_small():
    z, _ = planted(rank=5)
    found = fidelity.fit(z)
    levels = fidelity.curve(found, "variance")
    for f in (0.8, 0.9, 0.95, 0.99):
        index = int(np.argmax(levels > f))
        assert fidelity.dims_for(found, f, "variance") == index + 1
        kept = [np.square(np.asarray(fidelity.crop(found, z, r)) - z.mean(0)).sum() / np.square(z - z.mean(0)).sum() for r in (index, index + 1)]
        assert kept[0] < f <= kept[1] + 1e-6


def test_cropping_less_loses_less_and_leaves_the_kept_coordinates_alone():
    z, _ = planted(frames=300, d=12, rank=12)
    found = fidelity.fit(z)
    errors = [float(np.square(np.asarray(fidelity.crop(found, z, r)) - z).sum()) for r in range(13)]
    left = np.cumsum(found.singular_values[::-1] ** 2)[::-1]
    np.testing.assert_allclose(errors[:12], left, rtol=1e-4)
    assert errors[12] < 1e-8
    noise = np.random.default_rng(1).standard_normal((300, 12)).astype(np.float32)
    rotated = (np.asarray(fidelity.crop(found, z, 4, noise), np.float64) - found.mean) @ found.components.T
    np.testing.assert_allclose(rotated[:, 4:], noise[:, 4:], atol=1e-5)
    np.testing.assert_allclose(rotated[:, :4], ((z - found.mean) @ found.components.T)[:, :4], atol=1e-5)
    np.testing.assert_allclose(fidelity.crop(found, z, 0), np.tile(found.mean, (300, 1)), atol=1e-5)


def test_r_may_be_traced_and_compress_then_expand_is_crop():
    z = planted(d=9, rank=9, frames=60)[0].reshape(4, 15, 9)
    found, noise = fidelity.fit(z), jax.random.normal(jax.random.key(0), (4, 15, 9))
    crop = jax.jit(fidelity.crop)
    for r in range(10):
        for fill in (None, noise):
            wanted = fidelity.crop(found, z, r, fill)
            np.testing.assert_allclose(crop(found, z, jnp.int32(r), fill), wanted, atol=1e-6)
            coordinates = jax.jit(fidelity.compress, static_argnums=2)(found, z, r)
            assert coordinates.shape == (4, 15, r)
            np.testing.assert_allclose(jax.jit(fidelity.expand)(found, coordinates, fill), wanted, atol=1e-5)
    assert crop._cache_size() == 2
    each = np.asarray(fidelity.crop(found, z, np.array([2, 9, 0, 5])[:, None, None]))
    for row, r in enumerate((2, 9, 0, 5)):
        np.testing.assert_allclose(each[row], fidelity.crop(found, z, r)[row], atol=1e-6)


def test_saved_and_loaded_is_the_same(tmp_path):
    found = fidelity.fit(planted(d=7, rank=3)[0])
    fidelity.save(found, tmp_path / "analysis.npz")
    again = fidelity.load(str(tmp_path / "analysis.npz"))
    for one, other in zip(again, found):
        np.testing.assert_array_equal(one, other)
    assert isinstance(again.count, int) and [p.name for p in tmp_path.iterdir()] == ["analysis.npz"]
    assert fidelity.dims_for(fidelity.from_bytes(fidelity.to_bytes(found)), 1.0) == 3


def test_a_damaged_or_foreign_file_is_one_sentence(tmp_path):
    found = fidelity.fit(planted(d=5, rank=3)[0])
    whole = fidelity.to_bytes(found)
    for size in range(0, len(whole), 37):
        with pytest.raises(UserError, match="damaged or no latent analysis"):
            fidelity.from_bytes(whole[:size])
    refused = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        try:
            again = fidelity.from_bytes(bytes(flipped))
            assert all(np.array_equal(one, other) for one, other in zip(again, found))  # a field of the archive that says nothing of the arrays
        except UserError:
            refused += 1
    assert refused > len(whole) / 2
    turned = found._replace(components=found.components * 1.01)
    for other in ({"x": np.zeros(3)}, turned._asdict(), found._replace(mean=np.zeros(6))._asdict(), found._replace(count=0)._asdict(),
                  found._asdict() | {"more": 1}, found._replace(mean=np.array([None] * 5))._asdict()):
        data = io.BytesIO()
        np.savez(data, **other)
        with pytest.raises(UserError, match="some.npz"):
            fidelity.from_bytes(data.getvalue(), "some.npz")
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    with pytest.raises(UserError, match="no latent analysis"):
        fidelity.from_bytes(data.getvalue())
    with pytest.raises(UserError, match="analyse"):
        fidelity.load(tmp_path / "analysis.npz")


def test_user_mistakes_are_one_sentence():
    found = fidelity.fit(np.eye(4))
    for f in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="more than 0 and at most 1"):
            fidelity.dims_for(found, f)
    with pytest.raises(UserError, match="singular, variance"):
        fidelity.dims_for(found, 0.9, "energy")
    with pytest.raises(UserError, match="at least one frame"):
        fidelity.fit(np.zeros((0, 4)))
    with pytest.raises(UserError, match="not finite"):
        fidelity.fit(np.array([[1.0, np.nan], [0, 1]]))
    with pytest.raises(UserError, match="4 and of 3"):
        fidelity.fit([np.eye(4), np.eye(3)])
