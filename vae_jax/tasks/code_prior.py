"""A learned prior over the codes of a frozen VQ-VAE of pictures: gated PixelCNN, and with it new pictures and the bits that codes really cost.

    --config.start_from=encoder=RUN,quantizer=RUN,decoder=RUN        the players of a `vqvae` run, which no move trains

Codes come from the pictures at every step, or ready-made from a folder that the verb encode_codes wrote. Of c codes a position, the map is taken c
times as wide, and the prior knows which of them it is at. All rates are of evaluation and in bits; a code of `uniform` bits is log2 K, of `empirical`
ones costs the entropy of how often the codes of the split itself are used. A prior that is told the class gives rates given the class.
Players: prior; encoder, quantizer, decoder.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from vae_jax.config import Config, UserError, at_least
from vae_jax.losses import likelihoods, quantization
from vae_jax.models import pixelcnn
from vae_jax.records import Field
from vae_jax.tasks import Move, Task, vqvae


@dataclasses.dataclass
class Model:
    autoencoder: vqvae.Model = dataclasses.field(default_factory=vqvae.Model)  # that of the run that start_from names
    channels: int = 64
    layers: int = 8
    first_kernel: int = 7
    kernel: int = 3
    hidden: int = 256  # of the head
    condition: str = ""  # '' or label
    top_k: int = 0  # samples take one of so many likeliest codes; 0 = of all


def network(m: Model, classes: int, labels: int, slots: int, dtype=jnp.float32) -> pixelcnn.PixelCNN:
    return pixelcnn.PixelCNN(classes, m.channels, m.layers, m.first_kernel, m.kernel, m.hidden, labels if m.condition else 0, slots, dtype)


def make(config: Config, spec) -> Task:
    m, labels = config.model, _check(config, spec)
    if "codes" in spec.fields:
        spec = dataclasses.replace(spec, fields={**spec.fields, "image": Field(tuple(spec.facts["image"]), "uint8")})
    vq, q = vqvae.make(dataclasses.replace(config, model=m.autoencoder), spec, "config.model.autoencoder"), vqvae.quantizer(m.autoencoder)
    c, shape = q.groups * q.levels, vq.front.shape
    h, w = (side >> m.autoencoder.downs for side in shape[:2])
    if m.top_k > q.codes:
        raise UserError(f"config.model.top_k={m.top_k} is more than the {q.codes} codes there are: give fewer, or 0 for all.")
    net = network(m, q.codes, len(labels), c, jnp.dtype(config.dtype))
    uniform = h * w * c * math.log(q.codes)

    def label_of(batch):
        return batch["label"] if m.condition else None

    def codes_of(params, variables, batch):
        """[b, h, w c]"""
        codes = batch["codes"] if "codes" in batch else jax.lax.stop_gradient(vq.encode(params, variables, batch)["indices"])
        return codes.reshape(len(codes), h, w * c)

    def init(key, batch):
        keys = jax.random.split(key)
        params, variables = vq.init(keys[0], {"image": jnp.zeros((1, *shape)), "label": jnp.zeros(1, jnp.int32)})
        made = net.init(keys[1], jnp.zeros((1, h, w * c), jnp.int32), jnp.zeros(1, jnp.int32) if m.condition else None)
        return {**params, "prior": made}, variables

    def nats(params, variables, batch):
        """[b, h, w c]: -log p of each code."""
        codes = codes_of(params, variables, batch)
        return codes, optax.softmax_cross_entropy_with_integer_labels(net.apply(params["prior"], codes, label_of(batch)), codes)

    def loss(params, variables, batch, key, step):
        value = jnp.mean(jnp.sum(nats(params, variables, batch)[1], (1, 2)))
        return value, (variables, {"loss": value, "share_of_uniform": value / uniform})

    def metrics(params, variables, batch, key):
        codes, cost = nats(params, variables, batch)
        found = {"loss": jnp.sum(cost, (1, 2)), "counts": jax.vmap(lambda i: quantization.counts(q, i.reshape(-1, c)))(codes)}
        made = {} if "codes" in batch else vq.metrics(params, variables, batch, key)
        return found | {"picture" if name == "loss" else name: made[name] for name in ("loss", "mse", "psnr") if made}

    def summary(sums, squares, count):
        cost, found = sums["loss"] / count, quantization.summary(q, sums["counts"])
        empirical = h * w * c * math.log(2) * found["empirical_bits_per_code"]
        found |= {"loss": cost, "bits_per_code": cost / (h * w * c * math.log(2)), "share_of_uniform": cost / uniform,
                  "share_of_empirical": cost / max(empirical, 1e-9)}
        found |= {name: sums[name] / count for name in ("mse", "psnr") if name in sums}
        if "picture" in sums and m.autoencoder.likelihood != "squared":
            dims, picture = math.prod(shape), sums["picture"] / count
            found |= {f"{name}bits_per_dim": likelihoods.bits_per_dim(picture + code, dims)
                      for name, code in (("", cost), ("empirical_", empirical), ("uniform_", uniform))}
        return found

    def sample(params, variables, key, request):
        """request: temperature [n]; label [n] int32 where the prior or the decoder is told it; codes and mask [n, h, w, c]: codes that are kept where
        the mask is True."""
        given = [request[name].reshape(-1, h, w * c) for name in ("codes", "mask")] if "mask" in request else [None, None]
        codes = pixelcnn.generate(net, params["prior"], key, (len(request["temperature"]), h, w * c), request["label"] if m.condition else None,
                                  request["temperature"], m.top_k or None, *given)
        made = vq.decode(params, variables, codes.reshape(-1, h, w, c), vq.condition and vq.condition(request))
        return {"image/mean": made["image"], "codes": codes.reshape(-1, h, w, c)}

    def encode(params, variables, batch):
        return {"indices": codes_of(params, variables, batch).reshape(-1, h, w, c)}

    def condition(batch):
        """Of a label that the prior is told, the decoder, or both."""
        return jax.nn.one_hot(batch["label"], len(labels))

    return Task(init=init, moves={"train": Move(("prior",), loss)}, schedule=lambda step: ("train",), metrics=metrics, summary=summary, encode=encode,
                decode=vq.decode, condition=condition if m.condition or m.autoencoder.condition else None, sample=sample, front=vq.front)


def _check(config: Config, spec) -> tuple[str, ...]:
    """The names of the labels, or a UserError for settings that do not fit together or the data."""
    at_least(config.model, {"channels": 1, "layers": 1, "first_kernel": 1, "kernel": 1, "hidden": 1, "top_k": 0})
    return vqvae.labels_told(config, spec)
