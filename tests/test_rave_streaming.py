"""RAVE block by block against RAVE on whole sounds: the model, its encoder, its decoder, for random splits of the sound."""

import functools
import math

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
import soundfile
import test_rave_verbs

from vae_jax import recordings, records, streaming
from vae_jax.config import Config, Data
from vae_jax.latents import fidelity
from vae_jax.tasks import rave

SHORT = dict(ratios=(4, 2, 2, 2), noise_ratios=(2, 2, 2))
VARIANTS = {  # settings, channels, sizes of blocks in hops: one where compiling takes long
    "v1": (dict(), 1, [1]),
    "v2": (dict(version=2, amplitudes=0), 1, [1]),
    "v1-causal": (dict(causal=True, snake=True, extra=2, latent=16, **SHORT), 2, [2]),
    "v2-causal": (dict(version=2, causal=True, amplitudes=8, latents="spherical", **SHORT), 1, [2]),
    "v1-one-band": (dict(bands=1, amplitudes=0, latents="wasserstein", ratios=(4, 2)), 1, [1, 2]),
    "v2-one-band": (dict(version=2, bands=1, snake=True, extra=3, ratios=(4, 2), noise_ratios=(4,)), 2, [1, 3]),
    "v1-odd": (dict(capacity=2, bands=2, ratios=(3, 2), noise_ratios=(3,)), 1, [1, 4]),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is nearly all that these tests do


@functools.cache
def made(variant):
    """(task, streams, params, variables), not trained, but no layer fades its input away, and the normalisation has statistics of its own."""
    settings, channels, _ = VARIANTS[variant]
    m = rave.Model(**{**dict(capacity=4, latent=6, noise_hidden=6, critic_capacity=2, windows=(64,)), **settings})
    hop, rng = m.bands * math.prod(m.ratios), np.random.default_rng(0)
    crop = hop * -(-4096 // hop)
    spec = records.Spec("waves", {"audio": records.Field((crop, channels), "int16")}, {}, facts={"rate": 48_000})
    config = Config(task="rave", model=m, data=Data(crop=crop))
    task = rave.make(config, spec)
    shapes = jax.eval_shape(task.init, jax.random.key(0), {"audio": jnp.zeros((1, crop, channels))})
    gain = 0.9 if m.snake else 1.3

    def drawn(tree):
        size = lambda a: rng.uniform(0.5, 1.5, a.shape) if len(a.shape) < 2 else rng.normal(0, gain / math.sqrt(math.prod(a.shape[:-1])), a.shape)
        return jax.tree.map(lambda a: jnp.asarray(size(a), jnp.float32), tree)

    params = {player: drawn(shapes[0][player]) for player in ("encoder", "decoder")}
    return task, rave.live(config, spec), params, {"encoder": drawn(shapes[1]["encoder"]), "decoder": {"noise": jnp.float32(0.1)}}


def offline_of(task, params, variables, x, change=lambda z: z):
    """(latents, sound) of whole sounds"""
    z = change(task.encode(params, variables, {"audio": x})["mean"])
    return z, task.decode(params, variables, z)["audio"]


def sound(live, channels, hops, seed=1):
    return jnp.asarray(0.3 * np.random.default_rng(seed).standard_normal((2, hops * live.hop, channels)), jnp.float32)


def splits(hops, sizes, seed):
    rng, found = np.random.default_rng(seed), []
    while sum(found) < hops:
        found.append(min(int(rng.choice(sizes)), hops - sum(found)))
    return found


def played(step, state, x, sizes, unit):
    """(the state at the end, what a stream makes of x cut to blocks of these sizes in units)"""
    parts, at = [], 0
    for size in sizes:
        state, y = step(state, x[:, at:at + size * unit])
        parts.append(y)
        at += size * unit
    return state, jnp.concatenate(parts, 1)


def snr(wanted, found):
    wanted, found = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    assert wanted.shape == found.shape and wanted.size
    return 10 * np.log10(np.sum(wanted**2) / (np.sum((wanted - found) ** 2) + 1e-100))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_is_the_model_on_the_whole_sound(variant):
    task, live, params, variables = made(variant)
    settings, channels, sizes = VARIANTS[variant]
    late, hop = live.model.delay, live.hop
    x = sound(live, channels, 2 * (3 + late // hop // 2))
    offline = jit(functools.partial(offline_of, task, params, variables))
    (z, whole), (_, silent) = offline(x), offline(0 * x)
    assert np.std(whole - silent) > 0.1 * np.std(whole) > 1e-3  # it is the sound that is compared, not its noise
    step = jit(functools.partial(live.model.step, params, variables))
    y = played(step, live.model.start(2), x, splits(z.shape[1], sizes, 2), hop)[1]
    assert late % hop == 0 and (late == 0) == settings.get("causal", False)
    assert snr(whole[:, :x.shape[1] - late], y[:, late:]) > 100
    assert np.isfinite(played(step, live.model.start(2), 0 * x, splits(z.shape[1], sizes, 2), hop)[1]).all()
    if len(sizes) > 1 or variant == "v1":
        encode, late = jit(functools.partial(live.encode.step, params, variables)), live.encode.delay
        z_played = played(encode, live.encode.start(2), x, splits(z.shape[1], sizes[:1], 2), hop)[1]
        assert snr(z[:, :z.shape[1] - late], z_played[:, late:]) > 100
        assert not z_played[:, :late].any()


def test_the_decoder_alone_and_behind_the_encoder():
    task, live, params, variables = made("v1-odd")
    x = sound(live, 1, 4 * (3 + live.model.delay // live.hop // 4))
    z, whole = jit(functools.partial(offline_of, task, params, variables))(x)
    decode, late = jit(functools.partial(live.decode.step, params, variables)), live.decode.delay
    y = played(decode, live.decode.start(2), z, splits(z.shape[1], [1, 4], 3), 1)[1]
    assert snr(whole[:, :x.shape[1] - late], y[:, late:]) > 100
    encode, sizes = jit(functools.partial(live.encode.step, params, variables)), [4] * (z.shape[1] // 4)
    behind = played(encode, live.encode.start(2), x, sizes, live.hop)[1]
    y = played(decode, live.decode.start(2, first=-live.encode.delay), behind, sizes, 1)[1]
    late += live.encode.delay * live.hop
    assert snr(whole[:, :x.shape[1] - late], y[:, late:]) > 100


def test_latents_cut_to_directions_that_change_while_it_plays():
    task, live, params, variables = made("v1-one-band")
    x, late = sound(live, 1, 8 + live.model.delay // live.hop), live.model.delay
    analysis = fidelity.fit(jit(task.encode)(params, variables, {"audio": x})["mean"])
    offline = jit(lambda x, r: offline_of(task, params, variables, x, lambda z: fidelity.crop(analysis, z, r))[1])
    step, sizes = jit(live.model.step), [2] * (x.shape[1] // live.hop // 2)
    for r in (1, 4, 6):
        cut = functools.partial(step, params, variables | streaming.directions(analysis, r))
        y = played(cut, live.model.start(2), x, sizes, live.hop)[1]
        assert snr(offline(x, r)[:, :y.shape[1] - late], y[:, late:]) > 100
    assert step._cache_size() == 1


def test_a_new_state_is_a_reset_and_an_old_one_a_place_to_go_back_to():
    task, live, params, variables = made("v1-odd")
    hops = 2 + live.model.delay // live.hop
    step, x, sizes = jit(functools.partial(live.model.step, params, variables)), sound(live, 1, 2 * hops), [hops, hops]
    state, first = played(step, live.model.start(2), x, sizes, live.hop)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(state))
    _, on = played(step, state, x, sizes, live.hop)
    np.testing.assert_array_equal(played(step, live.model.start(2), x, sizes, live.hop)[1], first)
    np.testing.assert_array_equal(played(step, state, x, sizes, live.hop)[1], on)
    other = played(step, live.model.start(2, (0, 1)), x, sizes, live.hop)[1]
    assert np.abs(other - first).max() > 1e-3  # another key, other noise


@pytest.mark.parametrize("half", ["model", "decode"])
def test_the_counter_of_frames_never_ends(half):
    """Of a stream just before and just after its counter turns back nothing is heard but other noise."""
    task, live, params, variables = made("v1-odd")
    stream = getattr(live, half)
    x = sound(live, 1, 40) if half == "model" else sound(live, 6, 4)[:, :40]
    step = functools.partial(jit(stream.step), params, {**variables, "decoder": {"noise": jnp.float32(0)}})
    unit = live.hop if half == "model" else 1
    state, _ = played(step, stream.start(2), x, [4] * 5, unit)
    frames = 6 if half == "model" else 1
    late = {**state, "position": jnp.int32((streaming.TURN // (1 if half == "model" else 6) // frames - 6) * frames)}
    (end, wanted), (turned, found) = (played(step, s, x, [4] * 5, unit) for s in (state, late))
    assert 0 < turned["position"] < streaming.TURN // 2 + 1000 and end["position"] < 1000
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("version,causal,amplitudes,delay",
                         [(1, False, 5, 24_576), (1, False, 0, 22_528), (2, False, 0, 28_672), (1, True, 5, 0), (2, True, 0, 0)])
def test_latency_is_known_before_anything_runs(version, causal, amplitudes, delay):
    """That of the published sizes, in samples; a causal model is late by its filter bank alone, whose prototype has 377 taps."""
    m = rave.Model(version=version, causal=causal, amplitudes=amplitudes)
    spec = records.Spec("waves", {"audio": records.Field((65_536, 1), "int16")}, {}, facts={"rate": 48_000})
    live = rave.live(Config(task="rave", model=m, data=Data(crop=65_536)), spec)
    assert (live.model.delay, live.latency, live.hop) == (delay, 377 - 16 if causal else delay, 2048)


def test_a_file_as_one_would_play_it(tmp_path):
    """The verb: another rate, two channels for a mono model; what is written is in time with what was read."""
    run = test_rave_verbs.make(tmp_path, 1)
    path, t = tmp_path / "take.wav", np.arange(int(1.1 * 11025)) / 11025
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * 300 * t), 0.1 * np.sin(2 * np.pi * 500 * t)], 1), 11025)
    found = launch.run("stream", f"--workdir={run.workdir}", f"--wav={path}", "--block=50")
    assert found.returncode == 2 and "a block of 50 samples is no multiple of the model's hop of 16: give 48." in found.stderr
    found = launch.run("stream", f"--workdir={run.workdir}", f"--wav={path}", "--block=48")
    assert found.returncode == 0, found.stderr
    wave, through = recordings.read(run, str(path), "wav"), recordings.through(run)
    made, rate = soundfile.read(run.workdir / "streams" / "take-48.wav", always_2d=True)
    wanted = through.decode(through.encode(wave), len(wave))
    assert rate == 8000 and made.shape == wanted.shape == (8800, 1)
    late = rave.live(run.config, run.spec).latency
    made, wanted = made[:-late], wanted[:-late]  # behind the end the stream hears silence, and layers of the whole sound see zeros
    factor = np.sum(made * wanted) / np.sum(wanted**2)
    assert factor == pytest.approx(float(found.stdout.split("gain ")[1]), rel=5e-3) and np.abs(made - factor * wanted).max() < 1 / 32768
    said = f"latency {late + 48:,} samples, {(late + 48) / 8:.1f} ms: {late:,} ({late / 8:.1f} ms) of the model + 48 (6.0 ms) of the block"
    assert said in found.stdout
    assert "the model is mono and the file stereo" in found.stdout and "times real time; the worst took" in found.stdout
