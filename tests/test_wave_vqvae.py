"""The VQ-VAE of raw sound, its WaveNet, and the prior over its codes, on small tones."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import toys
from scipy.stats import entropy

from vae_jax import records, tasks, update
from vae_jax.config import Config, Data, Optim, UserError
from vae_jax.dsp import mu_law
from vae_jax.losses import discretized, quantization
from vae_jax.models import wavenet
from vae_jax.models.wave_vqvae import Context, Eavesdropper, Encoder
from vae_jax.tasks import vqvae, wave_code_prior, wave_vqvae

SMALL = dict(hidden=8, blocks=1, downs=4, codes=8, dims=4, kmeans=2, cycles=1, layers=5, residual=8, gate=8, skip=16, condition="speaker")
FIELDS = {"audio": records.Field((toys.SAMPLES, 1), "int16"), "valid": records.Field((), "int32"),
          "label": records.Field((), "int64", ("low", "high")), "speaker": records.Field((), "int64", ("ann", "bob"))}
SPEC = records.Spec("tones", FIELDS, {"train": 8}, "", {"rate": toys.RATE})
BATCH = toys.tones(8) | {"valid": np.int32([1000, 900, 500, 16, 15, 1000, 700, 320])}
for row, valid in zip(BATCH["audio"], BATCH["valid"]):
    row[valid:] = 0
HOP, CODES = 16, 63  # 1,000 samples are filled up to 1,008


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def start(config):
    """task, a fresh state, and what takes a state so many steps further: (state, metrics of the last)."""
    task = tasks.get(config, SPEC)
    step = jax.jit(lambda state, batch: update.update(task, config, state, batch, ("train",)))

    def train(state, steps):
        for _ in range(steps):
            state, found = step(state, BATCH)
        return state, found

    return task, jax.jit(lambda batch: update.init_state(task, config, batch))(BATCH), train


def made(**settings):
    config = Config(task="wave_vqvae", model=wave_vqvae.Model(**SMALL | settings), optim=Optim(lr=1e-2))
    return config, *start(config)


@pytest.fixture(scope="module")
def trained():
    config, task, state, train = made()
    state, early = train(state, 2)
    state, late = train(state, 60)
    assert late["nats_per_sample"] < early["nats_per_sample"] - 0.5 and bool(late["finite"])
    return config, task, state


def real(steps, size):
    return np.arange(steps) * size < BATCH["valid"][:, None]


def test_evaluation_counts_what_is_real(trained):
    config, task, state = trained
    rows = {k: np.asarray(v, np.float64) for k, v in jax.jit(task.metrics)(state.params, state.variables, BATCH, None).items()}
    summary = task.summary({k: v.sum(0) for k, v in rows.items()}, None, 8)
    code = jax.jit(task.encode)(state.params, state.variables, BATCH)
    indices, z = np.asarray(code["indices"]), np.asarray(code["z"])
    assert indices.shape == (8, CODES, 1)
    shares = np.bincount(indices[real(CODES, HOP)].reshape(-1), minlength=8)
    assert summary["perplexity"] == pytest.approx(np.exp(entropy(shares)), rel=1e-5) and summary["dead"] == (shares == 0).sum()
    assert summary["empirical_bits_per_code"] == pytest.approx(entropy(shares, base=2), rel=1e-5)
    assert summary["uniform_bits_per_second"] == pytest.approx(3 * toys.RATE / HOP)
    for one, kept in zip(z, real(CODES, HOP)):
        np.testing.assert_allclose(one[kept].mean(0), 0.0, atol=1e-5)
        assert kept.sum() == 1 or np.all(one[kept].var(0) < 1.001)
    x = np.asarray(mu_law.encode(np.pad(BATCH["audio"][..., 0], ((0, 0), (0, 8))) / 32768.0))
    net = wavenet.WaveNet(256, 0, (1, 2, 4, 8, 16), 2, 8, 8, 16)
    book = np.asarray(state.variables["quantizer"]["codebook"])[0, 0]
    told = Context(8).apply(state.params["decoder"]["context"], book[indices[..., 0]])
    outputs = net.apply(state.params["decoder"]["wavenet"], x, np.eye(2)[BATCH["speaker"]], told)
    cost = -np.asarray(discretized.softmax_log_prob(outputs, x), np.float64)
    np.testing.assert_allclose(rows["loss"], np.where(real(1008, 1), cost, 0).sum(1), rtol=1e-5)
    assert summary["loss"] == pytest.approx(cost[real(1008, 1)].mean(), rel=1e-5)
    assert summary["bits_per_sample"] == pytest.approx(summary["loss"] / math.log(2))


@pytest.mark.parametrize("detune", [0.0, 4.0])
def test_what_lies_behind_the_end_is_of_no_consequence(trained, detune):
    config, _, state = trained
    task = tasks.get(dataclasses.replace(config, model=dataclasses.replace(config.model, detune=detune)), SPEC)
    filled = np.where(real(1000, 1)[..., None], BATCH["audio"], np.int16(9000))
    assert np.any(filled != BATCH["audio"])
    loss = jax.jit(lambda batch: task.moves["train"].loss(state.params, state.variables, batch, jax.random.key(0), 0))
    jax.tree.map(np.testing.assert_array_equal, loss(BATCH), loss(BATCH | {"audio": filled}))


def test_training_hears_sounds_faster_or_slower_at_the_same_places(trained):
    config, task, state = trained
    near, far = (tasks.get(dataclasses.replace(config, model=dataclasses.replace(config.model, detune=d)), SPEC) for d in (0.01, 4.0))
    own, close, other = (jax.jit(t.moves["train"].loss)(state.params, state.variables, BATCH, jax.random.key(0), 0)[1][1] for t in (task, near, far))
    assert float(close["nats_per_sample"]) == pytest.approx(float(own["nats_per_sample"]), rel=2e-3)
    assert float(close["commitment"]) == pytest.approx(float(own["commitment"]), rel=0.1)
    assert abs(float(other["commitment"] - own["commitment"])) > 0 and bool(np.isfinite(other["loss"]))


@pytest.mark.parametrize("kind", ["ema", "loss"])
def test_gradients_go_where_they_should(kind):
    """Straight through to the encoder, and to the codebook from its own term alone."""
    _, task, state, _ = made(quantizer=kind, commitment=0.0)
    value = lambda params, variables: task.moves["train"].loss(params, variables, BATCH, jax.random.key(0), 0)
    (_, (_, found)), slopes = jax.jit(jax.value_and_grad(value, has_aux=True))(state.params, state.variables)
    assert np.abs(slopes["encoder"]["params"]["out"]["Conv_0"]["kernel"]).max() > 0
    assert np.abs(slopes["decoder"]["wavenet"]["params"]["local"]).max() > 0
    if kind == "ema":
        assert not jax.tree.leaves(slopes["quantizer"])
        reconstruction = lambda tree: value(state.params, {"quantizer": tree})[1][1]["nats_per_sample"]
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(jax.jit(jax.grad(reconstruction))(state.variables["quantizer"])))
    else:
        embedding = lambda tree: value(state.params | {"quantizer": tree}, state.variables)[1][1]["embedding"]
        np.testing.assert_allclose(slopes["quantizer"]["codebook"], jax.jit(jax.grad(embedding))(state.params["quantizer"])["codebook"], atol=1e-7)


def test_codes_are_made_to_keep_the_voice_to_themselves():
    """The eavesdropper's cross-entropy, by hand: it goes down that gradient, and the encoder up, `secrecy` times as far; others feel nothing."""
    _, plain, _, _ = made(quantizer="loss")
    config, task, state, _ = made(quantizer="loss", secrecy=0.5)
    m, codes = config.model, real(CODES, HOP)
    slopes = [jax.jit(jax.grad(lambda params: t.moves["train"].loss(params, state.variables, BATCH, jax.random.key(0), 0)[0]))(state.params)
              for t in (plain, task)]
    x = discretized.unit(mu_law.encode(np.pad(BATCH["audio"], ((0, 0), (0, 8), (0, 0))) / 32768.0 * real(1008, 1)[..., None]), 256)

    def told(encoder, eavesdropper):
        z = Encoder(m.hidden, m.blocks, m.downs, m.dims).apply(encoder, x, codes)
        logits = Eavesdropper(2, m.hidden).apply(eavesdropper, quantization.quantise(vqvae.quantizer(m), state.params["quantizer"], z)[0])
        return -jnp.mean(jax.nn.log_softmax(logits)[codes, BATCH["speaker"].repeat(CODES).reshape(codes.shape)[codes]])

    encoder, eavesdropper = jax.jit(jax.grad(told, (0, 1)))(state.params["encoder"], state.params["decoder"]["eavesdropper"])
    changed = jax.tree.map(lambda with_it, without: with_it - without, slopes[1], slopes[0])
    assert max(np.abs(g).max() for g in jax.tree.leaves(encoder)) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -0.5 * b, atol=2e-6), changed["encoder"], encoder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), changed["decoder"].pop("eavesdropper"), eavesdropper)
    assert all(np.abs(g).max() < 2e-6 for g in jax.tree.leaves((changed["decoder"], changed["quantizer"])))


def test_decoding_is_drawn_by_its_key_and_heeds_codes_and_speaker(trained):
    _, task, state = trained
    code = jax.jit(task.encode)(state.params, state.variables, BATCH)["indices"][:2]
    decode = jax.jit(task.decode)
    voices = np.eye(2, dtype=np.float32)
    speak = lambda code, speakers, key=None: np.asarray(decode(state.params, state.variables, code, voices[speakers], key)["audio"])
    first = speak(code, [0, 1])
    assert first.shape == (2, CODES * HOP, 1) and np.abs(first).max() <= 1.0 and np.std(first) > 1e-4
    np.testing.assert_array_equal(first, speak(code, [0, 1]))
    assert np.any(first != speak(code, [0, 1], jax.random.key(7)))
    assert np.any(first[0] != speak(code, [1, 1])[0]) and np.any(first[0] != speak((code + 1) % 8, [0, 1])[0])


def test_the_spectrum_that_codes_must_tell():
    """Against librosa's, of a head that says 0 everywhere; and it is learned."""
    _, task, state, train = made(spectrum=1.0)
    learned, late = train(state, 40)
    _, early = train(state, 1)
    assert float(late["spectrum"]) < 0.8 * float(early["spectrum"])
    decoder = state.params["decoder"]
    silent = {**decoder, "spectrum": jax.tree.map(jnp.zeros_like, decoder["spectrum"])}
    rows = jax.jit(task.metrics)({**state.params, "decoder": silent}, state.variables, BATCH, None)
    for i, wave in enumerate(np.pad(BATCH["audio"][..., 0] / np.float32(32768), ((0, 0), (0, 8)))):
        heard = np.append(np.asarray(mu_law.decode(mu_law.encode(wave)))[HOP // 2:], np.zeros(HOP // 2, np.float32))
        found = librosa.feature.melspectrogram(y=heard, sr=toys.RATE, n_fft=256, hop_length=HOP, power=1.0, n_mels=32, pad_mode="constant")
        levels = 2 * np.log10(np.maximum(found[:, :CODES], 1e-10))
        levels = np.maximum(levels, levels.max() - 6.0)
        inside = real(CODES, HOP)[i]
        levels -= levels[:, inside].mean()
        assert float(rows["spectrum"][i]) == pytest.approx(np.sum(np.mean(levels[:, inside] ** 2, 0)), rel=1e-3)
    sums = {k: np.asarray(v, np.float64).sum(0) for k, v in rows.items()}
    rmse = task.summary(sums, None, 8)["spectrum_rmse_db"]
    assert rmse == pytest.approx(10 * math.sqrt(sums["spectrum"] / real(CODES, HOP).sum()))


def test_a_prior_over_the_codes_of_a_frozen_autoencoder(trained):
    auto, vq, first = trained
    config = Config(task="wave_code_prior", optim=Optim(lr=1e-2), model=wave_code_prior.Model(
        autoencoder=auto.model, condition=("label",), cycles=1, layers=4, residual=8, gate=8, skip=16))
    task, state, train = start(config)
    state = state.replace(params={**state.params, **first.params}, variables={**state.variables, **first.variables})
    kept = jax.tree.map(np.asarray, state.params)
    after, _ = train(state, 60)
    for player in vqvae.PLAYERS:
        jax.tree.map(np.testing.assert_array_equal, after.params[player], kept[player])
    rows = {k: np.asarray(v, np.float64) for k, v in jax.jit(task.metrics)(after.params, after.variables, BATCH, None).items()}

    net = wavenet.WaveNet(9, 0, (1, 2, 4, 8), 2, 8, 8, 16)
    codes = np.asarray(jax.jit(task.encode)(after.params, after.variables, BATCH)["indices"])[..., 0]
    kept = real(CODES, HOP)
    codes = np.where(kept, codes, 8)
    weights, walk = wavenet.prepare(net, after.params["prior"], 8, jnp.eye(2)[BATCH["label"]]), wavenet.start(net, 8)
    step, cost = jax.jit(lambda *given: wavenet.step(net, *given)), np.zeros((8, CODES))
    for t in range(CODES):
        walk, logits = step(weights, walk, codes[:, max(t - 1, 0)])
        cost[:, t] = -np.asarray(jax.nn.log_softmax(logits))[np.arange(8), codes[:, t]]
    counted = np.arange(CODES) <= kept.sum(1)[:, None]  # END too, where there is room for it
    np.testing.assert_allclose(rows["loss"], np.where(counted, cost, 0).sum(1), rtol=1e-4)
    summary = task.summary({k: v.sum(0) for k, v in rows.items()}, None, 8)
    assert summary["bits_per_code"] == pytest.approx(rows["loss"].sum() / kept.sum() / math.log(2), rel=1e-6) and summary["share_of_uniform"] < 1.0
    own = jax.jit(vq.metrics)(first.params, first.variables, BATCH, None)
    sound = vq.summary({k: np.asarray(v, np.float64).sum(0) for k, v in own.items()}, None, 8)
    per_sample = sound["bits_per_sample"] + 3.0 * kept.sum() / BATCH["valid"].sum()
    assert summary["uniform_bits_per_sample"] == pytest.approx(per_sample, rel=1e-5)

    request = {"temperature": np.ones(16, np.float32), "label": np.arange(16, dtype=np.int32) % 2, "speaker": np.zeros(16, np.int32)}
    drawn = jax.tree.map(np.asarray, jax.jit(task.sample)(after.params, after.variables, jax.random.key(1), request))
    assert drawn["audio/mean"].shape == (16, CODES * HOP) and len(np.unique(drawn["valid"])) > 2 and drawn["codes"].max() < 8
    behind = np.arange(CODES * HOP) >= drawn["valid"][:, None]
    assert behind.any() and np.all(drawn["audio/mean"][behind] == 0) and np.std(drawn["audio/mean"][~behind]) > 1e-4


def test_a_prior_over_two_codebooks_is_told_which_it_is_at_and_ends_behind_whole_positions():
    auto = made(groups=2)[0]
    config = Config(task="wave_code_prior", optim=Optim(lr=1e-2), model=wave_code_prior.Model(
        autoencoder=auto.model, cycles=1, layers=3, residual=8, gate=8, skip=16))
    task, state, train = start(config)
    state, found = train(state, 40)
    assert state.params["prior"]["params"]["local"].shape[0] == 2
    rows = jax.jit(task.metrics)(state.params, state.variables, BATCH, None)
    summary = task.summary({k: np.asarray(v, np.float64).sum(0) for k, v in rows.items()}, None, 8)
    assert summary["loss"] == pytest.approx(float(found["loss"]), rel=0.2)
    assert summary["uniform_bits_per_second"] == pytest.approx(6 * toys.RATE / HOP)
    request = {"temperature": np.ones(32, np.float32), "speaker": np.zeros(32, np.int32)}
    drawn = jax.tree.map(np.asarray, jax.jit(task.sample)(state.params, state.variables, jax.random.key(1), request))
    assert drawn["codes"].shape == (32, CODES, 2) and len(np.unique(drawn["valid"])) > 2 and np.all(drawn["valid"] % HOP == 0)
    for codes, valid in zip(drawn["codes"], drawn["valid"]):
        assert np.all(codes[max(1, valid // HOP) - 1:] == codes[max(1, valid // HOP) - 1])
    with pytest.raises(UserError, match="top_k=10 is more than the 8 codes and END"):
        tasks.get(dataclasses.replace(config, model=dataclasses.replace(config.model, top_k=10)), SPEC)
    with pytest.raises(UserError, match="config.model.autoencoder.codes=1 is too small"):
        tasks.get(dataclasses.replace(config, model=dataclasses.replace(config.model, autoencoder=wave_vqvae.Model(codes=1))), SPEC)
    with pytest.raises(UserError, match="several fields are written"):
        tasks.get(dataclasses.replace(config, model=dataclasses.replace(config.model, condition=("label,speaker",))), SPEC)


@pytest.mark.parametrize("settings,message", [
    (dict(downs=0), "config.model.downs=0 is too small"), (dict(condition="singer"), "'singer' is not one of"), (dict(quantizer="fsq"), "grid"),
    (dict(detune=40.0), "detune=40.0 semitones"),
    (dict(condition="", secrecy=1.0), "secrecy=1.0 needs"), (dict(codes=1), "codes=1 is too small"),
    (dict(detune=math.nan), "detune=nan"), (dict(quantizer="fsq", grid=("8x5",)), "whole numbers")])
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_refusals_of_data():
    def get(fields=FIELDS, crop=0, task="wave_vqvae", model=None):
        config = Config(task=task, model=model or wave_vqvae.Model(**SMALL), data=Data(dir="tones", crop=crop))
        return tasks.get(config, records.Spec("tones", fields, {"train": 8}, "", {"rate": toys.RATE}))

    with pytest.raises(UserError, match="crop=1000 is no multiple of the 16 samples .* take 992"):
        get(crop=1000)
    with pytest.raises(UserError, match="needs the field 'speaker'"):
        get({k: f for k, f in FIELDS.items() if k != "speaker"})
    with pytest.raises(UserError, match="one channel, but tones has 2"):
        get(FIELDS | {"audio": records.Field((1000, 2), "int16")})
    with pytest.raises(UserError, match="for sounds as data_prep writes them, but the data set tones holds image"):
        get({"image": records.Field((8, 8, 1), "uint8")})
    prior = wave_code_prior.Model(autoencoder=wave_vqvae.Model(**SMALL), condition=("label", "label"))
    with pytest.raises(UserError, match="each once"):
        get(task="wave_code_prior", model=prior)
