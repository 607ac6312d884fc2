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

from vae_jax import corruptions, evaluate, fronts
from vae_jax.config import Config, UserError, at_least
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


def make(config: Config, spec, at: str = "config.model") -> Task:
    """`at`: where a user sets the model, for messages."""
    m = config.model
    front = fronts.get(spec, fronts.Sound(), 2 ** m.downs)
    labels = _check(config, spec, front, at)
    dtype, q = jnp.dtype(config.dtype), quantizer(m)
    h, w, channels = front.shape
    positions, dims = (h >> m.downs) * (w >> m.downs) * q.groups * q.levels, math.prod(front.shape)
    mixtures = {"components": m.mixtures} if m.likelihood == "logistic_mixture" else {}
    likelihood = None if m.likelihood == "squared" else likelihoods.get(m.likelihood, **mixtures)
    outputs = likelihood.channels(channels) if likelihood else channels
    encoder = vqvae.Encoder(m.hidden, m.residual, m.blocks, m.downs, q.dims, dtype)
    decoder = vqvae.Decoder(m.hidden, m.residual, m.blocks, m.downs, outputs, likelihood is not None, dtype)

    def condition_of(batch):
        return jax.nn.one_hot(batch["label"], len(labels)) if m.condition else None

    def init(key, batch):
        keys = jax.random.split(key, 3)
        x, tree = front.analyse(batch), quantization.init(q, keys[1])
        z = jnp.zeros((len(x), h >> m.downs, w >> m.downs, q.dims))
        params = {"encoder": encoder.init(keys[0], x), "decoder": decoder.init(keys[2], z, condition_of(batch))}
        learned, averaged = apart(m, tree)
        return params | {"quantizer": learned}, {"quantizer": averaged}

    def reconstruction(outputs, x):
        """[b]: -log p(x | z) in nats, or the squared error over the variance of the data, summed over pixels and channels."""
        if likelihood:
            return -likelihood.log_prob({"x": outputs}, x)
        return jnp.sum(jnp.square(outputs + 0.5 - x), (1, 2, 3)) / m.variance

    def picture(outputs):
        return likelihood.mean({"x": outputs}) if likelihood else outputs + 0.5

    def loss(params, variables, batch, key, step):
        keys = jax.random.split(key)
        x = front.analyse(batch)
        z = encoder.apply(params["encoder"], corruptions.corrupt(keys[0], x, m.corruptions))
        z_q, tree, found = quantization.learn(q, codebook(m, params, variables), z, keys[1])
        error = jnp.mean(reconstruction(decoder.apply(params["decoder"], z_q, condition_of(batch)), x)) / dims
        total = error + codes_cost(m, found)
        return total, ({**variables, "quantizer": apart(m, tree)[1]}, {"loss": total, "reconstruction": error} | found)

    def encode(params, variables, batch):
        z = encoder.apply(params["encoder"], front.analyse(batch))
        return {"indices": quantization.quantise(q, codebook(m, params, variables), z)[1]}

    def outputs_of(params, variables, indices, condition=None):
        return decoder.apply(params["decoder"], quantization.lookup(q, codebook(m, params, variables), indices), condition if m.condition else None)

    def decode(params, variables, code, condition=None):
        return {"image": picture(outputs_of(params, variables, code, condition))}

    def metrics(params, variables, batch, key):
        x, indices = front.analyse(batch), encode(params, variables, batch)["indices"]
        outputs = outputs_of(params, variables, indices, condition_of(batch))
        mse = jnp.mean(jnp.square(picture(outputs) - x), (1, 2, 3))
        return {"loss": reconstruction(outputs, x), "mse": mse, "psnr": -10 * jnp.log10(mse + 1e-12),
                "counts": jax.vmap(lambda i: quantization.counts(q, i))(indices)}

    def summary(sums, squares, count):
        average = {k: v / count for k, v in sums.items()}
        found = {"loss": average["loss"] / dims, "loss_error": evaluate.standard_error(sums["loss"], squares["loss"], count) / dims}
        found |= {"mse": average["mse"], "nmse": average["mse"] / m.variance, "psnr": average["psnr"]} | quantization.summary(q, sums["counts"])
        if likelihood:
            nats = lambda name: positions * math.log(2) * found[f"{name}_bits_per_code"]
            found |= {f"{name}_bits_per_dim": likelihoods.bits_per_dim(average["loss"] + nats(name), dims) for name in ("uniform", "empirical")}
        return found

    def repair(params, variables, batch, key, amount):
        """For each corruption the squared error of the spoilt pictures, of what the model makes of them, and by how much that is less, the mean of
        `amount` draws."""
        x, found = front.analyse(batch), {}
        error = lambda y: jnp.mean(jnp.square(y - x), (1, 2, 3))
        for i, kind in enumerate(m.corruptions):
            for draw in range(amount):
                spoilt = corruptions.KINDS[kind](jax.random.fold_in(key, amount * i + draw), x)
                indices = encode(params, variables, {**batch, "image": spoilt})["indices"]
                made = decode(params, variables, indices, condition_of(batch))["image"]
                before, after = error(spoilt), error(made)
                for name, value in {"spoilt_mse": before, "mse": after, "mse_gain": before - after}.items():
                    found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0.0) + value / amount
        return found

    return Task(init=init, moves={"train": Move(PLAYERS, loss)}, schedule=lambda step: ("train",), metrics=metrics, summary=summary, encode=encode,
                decode=decode, condition=condition_of if m.condition else None, measures={"repair": repair} if m.corruptions else {}, front=front)


def codebook(m, params, variables) -> dict:
    """The quantiser's tree: among the variables where averages move it, else among the params."""
    return variables["quantizer"] if m.quantizer == "ema" else params["quantizer"]


def apart(m, tree: dict) -> tuple[dict, dict]:
    """A quantiser's tree as (params, variables) of its player."""
    return ({}, tree) if m.quantizer == "ema" else (tree, {})


def codes_cost(m, found: dict):
    """What of the figures of `quantization.learn` belongs to the loss."""
    return m.commitment * found["commitment"] + (found["embedding"] if m.quantizer == "loss" else 0.0)


def labels_told(config: Config, spec, at: str = "config.model") -> tuple[str, ...]:
    """Names of the labels. Raises UserError where `at`.condition asks for some that there are not."""
    if config.model.condition not in ("", "label"):
        raise UserError(f"{at}.condition={config.model.condition!r} is not one of '', label.")
    labels = spec.fields["label"].labels if "label" in spec.fields else ()
    if config.model.condition and not labels:
        raise UserError(f"{at}.condition='label' needs labels, but {config.data.dir} has none.")
    return labels


def _check(config: Config, spec, front, at) -> tuple[str, ...]:
    """The names of the labels, or a UserError for settings that do not fit together or the data."""
    m = config.model
    if front.kind != "image":
        raise UserError(f"this VQ-VAE is for pictures, but the data set {spec.name} holds {', '.join(spec.fields)}.")
    if m.likelihood not in LIKELIHOODS:
        raise UserError(f"{at}.likelihood={m.likelihood!r} is not one of {', '.join(LIKELIHOODS)}.")
    at_least(m, {"codes": 2, "hidden": 2, "residual": 1, "blocks": 0, "downs": 1, "commitment": 0, "mixtures": 1}, at)
    if not m.variance > 0:
        raise UserError(f"{at}.variance={m.variance} must be above 0: the variance of the training pixels, white = 1.")
    if any(side % 2 ** m.downs for side in front.shape[:2]):
        raise UserError(f"pictures of {front.shape[0]} x {front.shape[1]} do not halve {m.downs} times: give another {at}.downs, or prepare "
                        "the data with another --size.")
    corruptions.check(m.corruptions, *front.shape[:2])
    return labels_told(config, spec, at)
