"""The VQ-VAE of pictures: codes of a learned codebook in place of a Gaussian code (van den Oord et al. 2017, arXiv:1711.00937).

The loss is a mean over pixels and channels, as published: squared error over the variance of the data ('squared'), or nats a value for likelihoods of
8-bit values; the codebook and commitment terms are means over positions and channels. Evaluation gives nats and bits of whole pictures.
Players: encoder, quantizer (its codebook is among the variables where averages move it, else among the params), decoder. A code is `indices` int32
[b, h, w, c], c codes a position.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import corruptions, evaluate, fronts
from vae_jax.config import Config, UserError
from vae_jax.losses import likelihoods, quantization
from vae_jax.models import vqvae
from vae_jax.tasks import Move, Task

PLAYERS = ("encoder", "quantizer", "decoder")
LIKELIHOODS = ("squared", "categorical", "logistic_mixture")


@dataclasses.dataclass
class Model:
    hidden: int = 128  # channels
    residual: int = 32  # channels inside a residual block
    blocks: int = 2  # residual blocks in the encoder, and in the decoder
    downs: int = 2  # halvings of height and width
    quantizer: str = "ema"  # ema: averages move the codebook; loss: a gradient does; fsq: a fixed grid
    codes: int = 512  # K of a codebook
    dims: int = 64  # numbers that a position's codes stand for together
    groups: int = 1  # codes a position, each for its part of the numbers
    levels: int = 1  # residual levels: each has codes for what the one before left
    grid: tuple[int, ...] = ()  # fsq: values of each dimension, such as (8, 5, 5, 5)
    decay: float = 0.99  # ema
    restart: float = 0.0  # ema: a code with fewer positions a batch than this, on average, begins anew; 0 = never
    kmeans: int = 10  # ema: rounds of k-means on the first batch; 0 = a random codebook
    commitment: float = 0.25
    likelihood: str = "squared"  # squared; categorical: 256 probabilities a value; logistic_mixture
    variance: float = 1.0  # squared: of the training pixels, white = 1
    mixtures: int = 5  # logistic_mixture: components a pixel
    condition: str = ""  # '' or label: given to the decoder
    corruptions: tuple[str, ...] = ()  # the encoder sees pictures spoilt so, one way each: noise, low_resolution, grey, patch


def quantizer(m: Model) -> quantization.Quantizer:
    ema = {"decay": m.decay, "restart": m.restart, "kmeans": m.kmeans} if m.quantizer == "ema" else {}
    return quantization.get(m.quantizer, m.codes, m.dims, m.groups, m.levels, grid=m.grid, **ema)


def make(config: Config, spec) -> Task:
    m = config.model
    front = fronts.get(spec, fronts.Sound(), 2 ** m.downs)
    labels = _check(config, spec, front)
    dtype, q = jnp.dtype(config.dtype), quantizer(m)
    h, w, channels = front.shape
    positions, dims = (h >> m.downs) * (w >> m.downs) * q.groups * q.levels, math.prod(front.shape)
    likelihood = None if m.likelihood == "squared" else likelihoods.get(m.likelihood, **({"components": m.mixtures} if "mix" in m.likelihood else {}))
    encoder = vqvae.Encoder(m.hidden, m.residual, m.blocks, m.downs, q.dims, dtype)
    decoder = vqvae.Decoder(m.hidden, m.residual, m.blocks, m.downs, likelihood.channels(channels) if likelihood else channels, likelihood is not None,
                            dtype)

    def condition_of(batch):
        return jax.nn.one_hot(batch["label"], len(labels)) if m.condition else None

    def codebook(params, variables):
        return variables["quantizer"] if m.quantizer == "ema" else params["quantizer"]

    def init(key, batch):
        keys = jax.random.split(key, 3)
        x, tree = front.analyse(batch), quantization.init(q, keys[1])
        z = jnp.zeros((len(x), h >> m.downs, w >> m.downs, q.dims))
        params = {"encoder": encoder.init(keys[0], x), "decoder": decoder.init(keys[2], z, condition_of(batch))}
        learned, moved = ({}, tree) if m.quantizer == "ema" else (tree, {})
        return params | {"quantizer": learned}, {"quantizer": moved}

    def reconstruction(outputs, x):
        """[b]: -log p(x | z) in nats, or the squared error over the variance of the data, summed over pixels and channels."""
        if likelihood:
            return -likelihood.log_prob({"x": outputs}, x)
        return jnp.sum(jnp.square(outputs + 0.5 - x), (1, 2, 3)) / m.variance

    def picture(outputs):
        return likelihood.mean({"x": outputs}) if likelihood else outputs + 0.5

    def loss(params, variables, batch, key, step):
        keys = jax.random.split(key, 3)
        x = front.analyse(batch)
        z = encoder.apply(params["encoder"], corruptions.corrupt(keys[0], x, m.corruptions))
        tree = quantization.start(q, codebook(params, variables), z, keys[1])
        z_q, indices, _ = quantization.quantise(q, tree, z)
        embedding, commitment = quantization.losses(q, tree, z, indices)
        moved, restarts = quantization.update(q, tree, z, indices, keys[2])
        error = jnp.mean(reconstruction(decoder.apply(params["decoder"], z_q, condition_of(batch)), x)) / dims
        total = error + m.commitment * commitment + (embedding if m.quantizer == "loss" else 0.0)
        used = quantization.statistics(quantization.counts(q, indices))
        found = {"loss": total, "reconstruction": error, "embedding": embedding, "commitment": commitment, "restarts": jnp.sum(restarts),
                 "perplexity": jnp.mean(used["perplexity"]), "usage": jnp.mean(used["usage"])}
        return total, ({**variables, "quantizer": moved if m.quantizer == "ema" else variables["quantizer"]}, found)

    def encode(params, variables, batch):
        z = encoder.apply(params["encoder"], front.analyse(batch))
        return {"indices": quantization.quantise(q, codebook(params, variables), z)[1]}

    def outputs_of(params, variables, indices, condition=None):
        return decoder.apply(params["decoder"], quantization.lookup(q, codebook(params, variables), indices), condition if m.condition else None)

    def decode(params, variables, code, condition=None):
        return {"image": picture(outputs_of(params, variables, code, condition))}

    def metrics(params, variables, batch, key):
        x, indices = front.analyse(batch), encode(params, variables, batch)["indices"]
        outputs = outputs_of(params, variables, indices, condition_of(batch))
        mse = jnp.mean(jnp.square(picture(outputs) - x), (1, 2, 3))
        return {"loss": reconstruction(outputs, x), "mse": mse, "psnr": -10 * jnp.log10(mse + 1e-12),
                "counts": jax.vmap(lambda i: quantization.counts(q, i))(indices)}

    def summary(sums, squares, count):
        average, counts = {k: v / count for k, v in sums.items()}, sums["counts"]
        used = jax.device_get(quantization.statistics(counts))
        found = {"loss": average["loss"] / dims, "loss_error": evaluate.standard_error(sums["loss"], squares["loss"], count) / dims}
        found |= {"mse": average["mse"], "nmse": average["mse"] / m.variance, "psnr": average["psnr"],
                  "perplexity": np.mean(used["perplexity"]), "usage": np.mean(used["usage"]), "dead": np.sum(used["dead"])}
        empirical = np.sum(np.log(used["perplexity"])) * (h >> m.downs) * (w >> m.downs)  # nats a picture
        found |= {"uniform_bits_per_code": math.log2(q.codes), "empirical_bits_per_code": empirical / (positions * math.log(2))}
        if likelihood:
            found |= {f"{name}_bits_per_dim": likelihoods.bits_per_dim(average["loss"] + code, dims)
                      for name, code in (("uniform", positions * math.log(q.codes)), ("empirical", empirical))}
        return found

    def repair(params, variables, batch, key, amount):
        """For each corruption the squared error of the spoilt pictures and of what the model makes of them, on `amount` draws."""
        x, found = front.analyse(batch), {}
        error = lambda y: jnp.mean(jnp.square(y - x), (1, 2, 3))
        for i, kind in enumerate(m.corruptions):
            for draw in range(amount):
                spoilt = corruptions.KINDS[kind](jax.random.fold_in(key, amount * i + draw), x)
                indices = quantization.quantise(q, codebook(params, variables), encoder.apply(params["encoder"], spoilt))[1]
                made = picture(outputs_of(params, variables, indices, condition_of(batch)))
                for name, value in ((f"{kind}/spoilt_mse", error(spoilt)), (f"{kind}/mse", error(made))):
                    found[name] = found.get(name, 0.0) + value / amount
        return found

    return Task(init=init, moves={"train": Move(PLAYERS, loss)}, schedule=lambda step: ("train",), metrics=metrics, summary=summary, encode=encode,
                decode=decode, condition=condition_of if m.condition else None, measures={"repair": repair} if m.corruptions else {}, front=front)


def _check(config: Config, spec, front) -> tuple[str, ...]:
    """The names of the labels, or a UserError for settings that do not fit together or the data."""
    m = config.model
    if front.kind != "image":
        raise UserError(f"this VQ-VAE is for pictures, but the data set {spec.name} holds {', '.join(spec.fields)}.")
    for name, choices in {"likelihood": LIKELIHOODS, "condition": ("", "label")}.items():
        if getattr(m, name) not in choices:
            raise UserError(f"config.model.{name}={getattr(m, name)!r} is not one of {', '.join(c or repr('') for c in choices)}.")
    for name, least in {"codes": 2, "hidden": 2, "residual": 1, "blocks": 0, "downs": 1, "commitment": 0, "mixtures": 1}.items():
        if getattr(m, name) < least:
            raise UserError(f"config.model.{name}={getattr(m, name)} is too small: give at least {least}.")
    if not m.variance > 0:
        raise UserError(f"config.model.variance={m.variance} must be above 0: the variance of the training pixels, white = 1.")
    if any(side % 2 ** m.downs for side in front.shape[:2]):
        raise UserError(f"pictures of {front.shape[0]} x {front.shape[1]} do not halve {m.downs} times: give another config.model.downs, or prepare the "
                        "data with another --size.")
    corruptions.check(m.corruptions, *front.shape[:2])
    labels = spec.fields["label"].labels if "label" in spec.fields else ()
    if m.condition and not labels:
        raise UserError(f"config.model.condition='label' needs labels, but {config.data.dir} has none.")
    return labels
