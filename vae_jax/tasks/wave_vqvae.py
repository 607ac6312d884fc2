"""The VQ-VAE of raw sound: codes of a learned codebook, and a WaveNet that speaks them with a voice that it is told (van den Oord et al. 2017,
section 4.3).

The encoder hears the 256 mu-law classes that the decoder has to tell, so quiet recordings are as large to it as loud ones. The loss is nats a sample,
over the samples that are real (`valid`), the commitment term, a mean over positions and channels, and where they are asked for the spectrum's error
and what an eavesdropper learns (`spectrum`, `secrecy`). What lies behind the end of a recording is silence to the encoder, costs nothing, and moves
no codebook. Players: encoder, quantizer (its codebook is among the variables where averages move it,
else among the params), decoder. A code is `indices` int32 [b, n, c], c codes for each 2^downs samples.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from vae_jax import fronts
from vae_jax.config import Config, UserError, at_least
from vae_jax.dsp import augment, mu_law, stft
from vae_jax.losses import discretized, quantization, spectral
from vae_jax.models import wave_vqvae, wavenet
from vae_jax.tasks import Move, Task, vqvae

CLASSES = 256  # of mu-law
CONDITIONS = ("", "label", "speaker")
WINDOW, BANDS = 256, 32  # of the spectrum: samples, and mel bands
RANGE_DB = 60.0  # below the loudest level of a sound, what is quieter counts as much


@dataclasses.dataclass
class Model:
    hidden: int = 128  # channels of the encoder, and of what the decoder is told of the codes
    blocks: int = 2  # residual blocks of the encoder
    downs: int = 6  # halvings of the rate: a code for each 2^downs samples
    quantizer: str = "ema"  # this and the next as in tasks/vqvae.py
    codes: int = 512
    dims: int = 64
    groups: int = 1
    levels: int = 1
    grid: tuple[int, ...] = ()
    decay: float = 0.99
    restart: float = 0.0
    kmeans: int = 10
    commitment: float = 0.25
    condition: str = ""  # '', label or speaker: told to the decoder, so that codes need not
    cycles: int = 2  # of the WaveNet's dilations 1, 2, 4 ...
    layers: int = 10  # a cycle
    kernel: int = 2
    residual: int = 64
    gate: int = 64
    skip: int = 256
    secrecy: float = 0.0  # how hard the encoder works against a net that learns to tell the condition from codes
    detune: float = 0.0  # semitones by which training plays sounds faster or slower to the encoder, so that codes cannot tell a voice by its pitch
    spectrum: float = 0.0  # weight of the spectrum that must be told from codes and voice alone, a squared error in units of 10 dB


def network(m: Model, dtype=jnp.float32) -> wavenet.WaveNet:
    return wavenet.WaveNet(CLASSES, 0, tuple(2**i for i in range(m.layers)) * m.cycles, m.kernel, m.residual, m.gate, m.skip, dtype)


def make(config: Config, spec, at: str = "config.model") -> Task:
    """`at`: where a user sets the model, for messages."""
    m = config.model
    labels = _check(config, spec, at)
    dtype, q, hop, rate = jnp.dtype(config.dtype), vqvae.quantizer(m), 2**m.downs, spec.facts["rate"]
    encoder, context = wave_vqvae.Encoder(m.hidden, m.blocks, m.downs, q.dims, dtype), wave_vqvae.Context(m.hidden, dtype)
    net, teller = network(m, dtype), wave_vqvae.Spectrum(m.hidden, BANDS, dtype)
    eavesdropper = wave_vqvae.Eavesdropper(len(labels), m.hidden, dtype)
    filters = stft.mel_filters(rate, WINDOW, BANDS, 0.0, rate / 2) if m.spectrum else None

    def analyse(batch):
        """[b, t, 1], t a multiple of the hop, silence behind what is real."""
        x = fronts.waves(batch)
        x = jnp.where(spectral.in_sound(batch["valid"], x.shape[1], 1), x, 0.0)
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % hop), (0, 0)))

    def condition_of(batch):
        return jax.nn.one_hot(batch[m.condition], len(labels)) if m.condition else None

    def real(batch, count, step):
        """bool [b, count]: steps of so many samples that begin before the sound ends."""
        return spectral.in_sound(batch["valid"], count, step)[..., 0]

    def hear(params, batch):
        """The mu-law classes [b, t], the encoder's z [b, n, dims], and which positions of each are real."""
        x = mu_law.encode(analyse(batch)[..., 0], CLASSES)
        codes = real(batch, x.shape[1] // hop, hop)
        return x, encoder.apply(params["encoder"], discretized.unit(x, CLASSES)[..., None], codes), real(batch, x.shape[1], 1), codes

    def detuned(params, batch, key):
        """The encoder's z [b, n, dims] of sounds that it hears faster or slower, each position that which hears its sound."""
        wave = analyse(batch)
        x, ratio = augment.detune(key, wave, m.detune)
        x = discretized.unit(mu_law.encode(jnp.pad(x, ((0, 0), (0, -x.shape[1] % hop), (0, 0))), CLASSES), CLASSES)
        z = encoder.apply(params["encoder"], x, spectral.in_sound(batch["valid"] / ratio, x.shape[1] // hop, hop)[..., 0])
        return augment.in_place(z, ratio, wave.shape[1] // hop)

    def init(key, batch):
        keys = jax.random.split(key, 6)
        z, tree, condition = jnp.zeros((1, 1, q.dims)), quantization.init(q, keys[1]), condition_of(batch)
        heard, told = encoder.init(keys[0], jnp.zeros((1, hop, 1)), jnp.ones((1, 1), bool)), context.init(keys[2], z)
        spoken = net.init(keys[3], jnp.zeros((1, hop), jnp.int32), None if condition is None else condition[:1], context.apply(told, z))
        learned, averaged = vqvae.apart(m, tree)
        decoder = {"context": told, "wavenet": spoken}
        if m.spectrum:
            decoder["spectrum"] = teller.init(keys[4], context.apply(told, z), None if condition is None else condition[:1])
        if m.secrecy:
            decoder["eavesdropper"] = eavesdropper.init(keys[5], z)
        return {"encoder": heard, "quantizer": learned, "decoder": decoder}, {"quantizer": averaged}

    def nats(params, x_bt, told, condition):
        """[b, t]: -log p of each sample given those before it and the codes, of which `told` [b, n, hidden] is what `context` makes."""
        return -discretized.softmax_log_prob(net.apply(params["decoder"]["wavenet"], x_bt, condition, told), x_bt)

    def spectrum_error(params, x_bt, told, condition, codes):
        """[b, n]: squared error of the spectrum in units of 10 dB, the mean over bands; levels are less the mean over the sound and its bands."""
        wave = jnp.pad(mu_law.decode(x_bt, CLASSES)[:, hop // 2:], ((0, 0), (0, hop // 2)))  # frames in the middle of what a code stands for
        levels = stft.to_db(stft.mel(stft.magnitude(stft.stft(wave, WINDOW, hop)[:, :-1]), filters), -200.0)
        levels = 0.1 * jnp.maximum(levels, jnp.max(levels, (1, 2), keepdims=True) - RANGE_DB)
        levels -= jnp.mean(levels, (1, 2), keepdims=True, where=codes[..., None])
        return jnp.mean(jnp.square(teller.apply(params["decoder"]["spectrum"], told, condition) - levels), -1)

    def overheard(params, z_q, batch, codes):
        """(cross-entropy that the eavesdropper lowers and, through a gradient `secrecy` times as long, the encoder raises; accuracy)"""
        turned = jax.lax.stop_gradient((1 + m.secrecy) * z_q) - m.secrecy * z_q
        logits = eavesdropper.apply(params["decoder"]["eavesdropper"], turned)
        truth = jnp.broadcast_to(batch[m.condition][:, None], codes.shape)
        mean = lambda values: jnp.sum(values, where=codes) / jnp.sum(codes)
        return -mean(discretized.softmax_log_prob(logits, truth)), mean(jnp.argmax(logits, -1) == truth)

    def loss(params, variables, batch, key, step):
        x, z, mask, codes = hear(params, batch)
        keys = jax.random.split(key)
        z = detuned(params, batch, keys[0]) if m.detune else z
        z_q, tree, used = quantization.learn(q, vqvae.codebook(m, params, variables), z, keys[1], codes)
        told, condition = context.apply(params["decoder"]["context"], z_q), condition_of(batch)
        error = jnp.sum(nats(params, x, told, condition), where=mask) / jnp.sum(mask)
        total, found = error + vqvae.codes_cost(m, used), {}
        if m.spectrum:
            found["spectrum"] = jnp.sum(spectrum_error(params, x, told, condition, codes), where=codes) / jnp.sum(codes)
            total += m.spectrum * found["spectrum"]
        if m.secrecy:
            cost, found["overheard"] = overheard(params, z_q, batch, codes)
            total += cost
        return total, ({**variables, "quantizer": vqvae.apart(m, tree)[1]}, {"loss": total, "nats_per_sample": error} | used | found)

    def encode(params, variables, batch):
        """indices, and what they stand for: z [b, n, dims] as the encoder gives it."""
        z = hear(params, batch)[1]
        return {"indices": quantization.quantise(q, vqvae.codebook(m, params, variables), z)[1], "z": z}

    def decode(params, variables, code, condition=None, key=None):
        """Drawn from the WaveNet: the same for the same key, key(0) where there is none."""
        told = context.apply(params["decoder"]["context"], quantization.lookup(q, vqvae.codebook(m, params, variables), code))
        shape, key = (len(code), code.shape[1] * hop), jax.random.key(0) if key is None else key
        drawn = wavenet.generate(net, params["decoder"]["wavenet"], key, shape, condition if m.condition else None, told)
        return {"audio": mu_law.decode(drawn, CLASSES)[..., None]}

    def metrics(params, variables, batch, key):
        x, z, mask, codes = hear(params, batch)
        indices = quantization.quantise(q, vqvae.codebook(m, params, variables), z)[1]
        z_q, condition = quantization.lookup(q, vqvae.codebook(m, params, variables), indices), condition_of(batch)
        told = context.apply(params["decoder"]["context"], z_q)
        found = {"loss": jnp.sum(nats(params, x, told, condition), 1, where=mask), "samples": jnp.sum(mask, 1),
                 "counts": code_counts(q, indices, codes)}
        if m.spectrum:
            found |= {"spectrum": jnp.sum(spectrum_error(params, x, told, condition, codes), 1, where=codes), "positions": jnp.sum(codes, 1)}
        return found

    def summary(sums, squares, count):
        cost = sums["loss"] / sums["samples"]
        found = {"loss": cost, "bits_per_sample": cost / math.log(2)} | quantization.summary(q, sums["counts"], rate / hop)
        return found | ({"spectrum_rmse_db": 10 * math.sqrt(sums["spectrum"] / sums["positions"])} if m.spectrum else {})

    reach = wavenet.receptive_field(net)
    ms = {name: f"{1000 * n / rate:.3g} ms" for name, n in (("hop", hop), ("heard", wave_vqvae.receptive_field(encoder)), ("reach", reach))}
    about = lambda: (f"a code stands for {ms['hop']}, its convolutions hear {ms['heard']}, {quantization.bits(q) * rate / hop:.4g} bits a second; "
                     f"the decoder looks back {ms['reach']}")
    samples = -(-spec.fields["audio"].shape[0] // hop) * hop
    front = fronts.Front("wave", (samples, 1), analyse, rate=rate, hop=hop)
    return Task(init=init, moves={"train": Move(vqvae.PLAYERS, loss)}, schedule=lambda step: ("train",), metrics=metrics, summary=summary,
                encode=encode, decode=decode, condition=condition_of if m.condition else None, front=front, about=about)


def code_counts(q: quantization.Quantizer, indices_bnc, real_bn):
    """How often each example has each code, [b, c, K], over its real positions."""
    c = indices_bnc.shape[-1]
    return jax.vmap(lambda i, real: jnp.zeros((c, q.codes)).at[jnp.arange(c), i].add(real[:, None]))(indices_bnc, real_bn)


def _check(config: Config, spec, at) -> tuple[str, ...]:
    """The names of the classes that the decoder is told, or a UserError for settings that do not fit together or the data."""
    m, crop = config.model, config.data.crop
    if not {"audio", "valid"} <= spec.fields.keys() or "rate" not in spec.facts:
        raise UserError(f"this VQ-VAE is for sounds as data_prep writes them, but the data set {spec.name} holds {', '.join(spec.fields)}.")
    if spec.fields["audio"].shape[1] != 1:
        raise UserError(f"this VQ-VAE is for one channel, but {config.data.dir} has {spec.fields['audio'].shape[1]}: prepare it with --channels=1.")
    at_least(m, {"codes": 2, "hidden": 1, "blocks": 0, "downs": 1, "commitment": 0, "cycles": 1, "layers": 1, "residual": 1, "gate": 1, "skip": 1,
                 "spectrum": 0, "detune": 0, "secrecy": 0}, at)
    if crop % 2**m.downs:
        raise UserError(f"config.data.crop={crop} is no multiple of the {2**m.downs} samples that a code stands for ({at}.downs={m.downs}): "
                        f"take {max(1, round(crop / 2**m.downs)) * 2**m.downs}.")
    if m.secrecy and not m.condition:
        raise UserError(f"{at}.secrecy={m.secrecy} needs something that codes are to keep to themselves: set {at}.condition to "
                        "label or speaker, or secrecy to 0.")
    if not m.detune <= 12:
        raise UserError(f"{at}.detune={m.detune} semitones are more than an octave: no voice is that much faster; give 4, say.")
    return classes(config, spec, f"{at}.condition", m.condition)


def classes(config: Config, spec, where: str, field: str) -> tuple[str, ...]:
    """Names of the classes of a field that a model is told of; () for ''. Raises UserError where there are none."""
    if field not in CONDITIONS:
        raise UserError(f"{where}={field!r} is not one of {', '.join(c or repr('') for c in CONDITIONS)}.")
    found = spec.fields[field].labels if field in spec.fields else ()
    if field and not found:
        raise UserError(f"{where}={field!r} needs the field {field!r}, but {config.data.dir} has none: prepare it with data_prep.speech, say.")
    return found
