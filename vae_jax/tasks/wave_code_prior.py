"""A learned prior over the codes of a frozen VQ-VAE of raw sound: a WaveNet over codes, and with it new sounds and the bits that codes really cost.

    --config.start_from=encoder=RUN,quantizer=RUN,decoder=RUN        the players of a `wave_vqvae` run, which no move trains

Codes come from the sounds at every step. A recording that ends within an example ends with a code more, END, so that samples end as well; codes
behind it cost nothing. Of c codes a position, the sequence is taken c times as long, and the prior is told which of the c it is at. Rates are in bits
a code, END's among those of the learned prior (given label and speaker where it is told these); a code of `uniform` bits is log2 K, of `empirical`
ones costs the entropy of how often the codes of the split itself are used.
Players: prior; encoder, quantizer, decoder.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from vae_jax.config import Config, UserError, at_least
from vae_jax.losses import discretized, quantization, spectral
from vae_jax.models import wavenet
from vae_jax.tasks import Move, Task, vqvae, wave_vqvae


@dataclasses.dataclass
class Model:
    autoencoder: wave_vqvae.Model = dataclasses.field(default_factory=wave_vqvae.Model)  # that of the run that start_from names
    condition: tuple[str, ...] = ()  # of label and speaker, those that the prior is told
    cycles: int = 2  # of dilations 1, 2, 4 ...
    layers: int = 6  # a cycle
    kernel: int = 2
    residual: int = 64
    gate: int = 64
    skip: int = 256
    top_k: int = 0  # samples take one of so many likeliest codes; 0 = of all


def make(config: Config, spec) -> Task:
    m = config.model
    labels = _check(config, spec)
    vq, q = wave_vqvae.make(dataclasses.replace(config, model=m.autoencoder), spec, "config.model.autoencoder"), vqvae.quantizer(m.autoencoder)
    c, end, front = q.groups * q.levels, q.codes, vq.front
    n, per_second = front.shape[0] // front.hop, front.rate / front.hop
    if m.top_k > end + 1:
        raise UserError(f"config.model.top_k={m.top_k} is more than the {end} codes and END that there are: give fewer, or 0 for all.")
    net, condition_of = network(m, end, jnp.dtype(config.dtype)), functools.partial(condition, m, {name: len(of) for name, of in labels.items()})

    def slots(b):
        """Which of its position's codes each one is [b, n c, c], or None."""
        return jnp.broadcast_to(jnp.tile(jnp.eye(c), (n, 1)), (b, n * c, c)) if c > 1 else None

    def real(batch):
        """bool [b, n]: codes that begin before the sound ends."""
        return spectral.in_sound(batch["valid"], n, front.hop)[..., 0]

    def codes_of(params, variables, batch):
        """Sequences [b, n c] with END behind the sound, how many of their codes count, and the codes as they were found [b, n, c]."""
        indices = jax.lax.stop_gradient(vq.encode(params, variables, batch)["indices"])
        kept = real(batch)
        length = c * jnp.sum(kept, 1)
        return jnp.where(kept[..., None], indices, end).reshape(-1, n * c), jnp.minimum(length + 1, n * c), indices

    def nats(params, codes, counted, condition):
        """[b, n c]: -log p of each code, 0 of those behind the first END."""
        cost = -discretized.softmax_log_prob(net.apply(params["prior"], codes, condition, slots(len(codes))), codes)
        return jnp.where(jnp.arange(n * c) < counted[:, None], cost, 0.0)

    def init(key, batch):
        keys = jax.random.split(key)
        params, variables = vq.init(keys[0], batch)
        condition = condition_of(batch)
        made = net.init(keys[1], jnp.zeros((1, n * c), jnp.int32), None if condition is None else condition[:1], slots(1))
        return {**params, "prior": made}, variables

    def loss(params, variables, batch, key, step):
        codes, counted, _ = codes_of(params, variables, batch)
        value = jnp.sum(nats(params, codes, counted, condition_of(batch))) / (c * jnp.sum(real(batch)))
        return value, (variables, {"loss": value, "share_of_uniform": value / math.log(end)})

    def metrics(params, variables, batch, key):
        codes, counted, indices = codes_of(params, variables, batch)
        kept, sound = real(batch), vq.metrics(params, variables, batch, key)
        return {"loss": jnp.sum(nats(params, codes, counted, condition_of(batch)), 1), "codes": c * jnp.sum(kept, 1), "sound": sound["loss"],
                "samples": sound["samples"], "counts": wave_vqvae.code_counts(q, indices, kept)}

    def summary(sums, squares, count):
        bits = sums["loss"] / sums["codes"] / math.log(2)
        found = quantization.summary(q, sums["counts"], per_second)
        uniform, empirical = found["uniform_bits_per_code"], found["empirical_bits_per_code"]
        sound, codes = sums["sound"] / sums["samples"] / math.log(2), sums["codes"] / sums["samples"]
        found |= {"loss": sums["loss"] / sums["codes"], "bits_per_code": bits, "bits_per_second": c * per_second * bits,
                  "share_of_uniform": bits / uniform, "share_of_empirical": bits / max(empirical, 1e-9)}
        rates = (("", bits), ("empirical_", empirical), ("uniform_", uniform))
        return found | {f"{name}bits_per_sample": sound + codes * rate for name, rate in rates}

    def sample(params, variables, key, request):
        """request: temperature [n], and label and speaker [n] int32 where prior or decoder are told them. Behind END there is silence; `valid` [n]:
        how many samples come before."""
        keys, b = jax.random.split(key), len(request["temperature"])
        drawn = wavenet.generate(net, params["prior"], keys[0], (b, n * c), condition_of(request), slots(b), request["temperature"], m.top_k or None)
        length = jnp.sum(jnp.cumprod(drawn != end, 1), 1) // c
        # Behind END the last code goes on: the codes before it are heard beside it when they are spoken
        last = jnp.minimum(jnp.arange(n), jnp.maximum(length - 1, 0)[:, None])[..., None]
        codes = jnp.take_along_axis(jnp.where(drawn == end, 0, drawn).reshape(b, n, c), last, 1)
        audio = vq.decode(params, variables, codes, vq.condition and vq.condition(request), keys[1])["audio"]
        valid = length * front.hop
        return {"audio/mean": jnp.where(jnp.arange(audio.shape[1]) < valid[:, None], audio[..., 0], 0.0), "codes": codes, "valid": valid}

    return Task(init=init, moves={"train": Move(("prior",), loss)}, schedule=lambda step: ("train",), metrics=metrics, summary=summary,
                encode=vq.encode, decode=vq.decode, condition=vq.condition, sample=sample, front=front)


def network(m: Model, codes: int, dtype=jnp.float32) -> wavenet.WaveNet:
    """Over the codes and END, the last of the classes."""
    return wavenet.WaveNet(codes + 1, 0, tuple(2**i for i in range(m.layers)) * m.cycles, m.kernel, m.residual, m.gate, m.skip, dtype)


def condition(m: Model, classes: dict[str, int], batch):
    """[b, g] of what the prior is told, or None."""
    return jnp.concatenate([jax.nn.one_hot(batch[name], classes[name]) for name in m.condition], -1) if m.condition else None


def told(m: Model) -> tuple[str, ...]:
    """The fields that a request for samples has: what prior and decoder are told."""
    return tuple(dict.fromkeys(name for name in (*m.condition, m.autoencoder.condition) if name))


def _check(config: Config, spec) -> dict[str, tuple[str, ...]]:
    """{field: names of its classes} of what the prior is told, or a UserError for settings that do not fit together or the data."""
    m = config.model
    at_least(m, {"cycles": 1, "layers": 1, "residual": 1, "gate": 1, "skip": 1, "top_k": 0})
    if any("," in name for name in m.condition):
        raise UserError(f"config.model.condition={m.condition}: several fields are written \"('label','speaker')\", in quotes.")
    if "" in m.condition or len(set(m.condition)) < len(m.condition):
        raise UserError(f"config.model.condition={m.condition} should be fields, each once: label, speaker, both, or () for none.")
    return {name: wave_vqvae.classes(config, spec, "config.model.condition", name) for name in m.condition}
