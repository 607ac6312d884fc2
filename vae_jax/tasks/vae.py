"""The VAE: reparameterised ELBO with any likelihood and prior of the house. A plain autoencoder is `variational=False`.

It sees records through `fronts`: pictures as they are, sounds as spectrograms, rolls as cells that sound or not. Everything is in nats, summed over
an example's dimensions and averaged over the batch; noise level and beta are explicit.
Players: encoder, decoder, prior.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import evaluate, fronts
from vae_jax.config import Config, UserError
from vae_jax.losses import divergences, likelihoods
from vae_jax.models import priors, vae
from vae_jax.tasks import Move, Task

PLAYERS = ("encoder", "decoder", "prior")
ACTIVE = 0.01  # variance over data of a posterior mean above which a latent unit counts as active (Burda et al. 2016)


@dataclasses.dataclass
class Model:
    family: str = "dense"  # dense, conv, lstm, hierarchical
    hidden: tuple[int, ...] = (300, 300)  # from picture to code: widths, channels of stride-2 layers, or LSTM units
    latent: int = 40
    activation: str = "relu"  # relu, tanh, gelu, linear; dense only: gated. An LSTM has its own
    shortcut: bool = False  # a linear path beside the layers of encoder and decoder
    autoregressive: bool = False  # lstm, hierarchical: the decoder also reads the row before
    bar: int = 16  # hierarchical: rows a bar, which is read alone and decoded from a state of its own
    condition: str = ""  # '' or label: given to encoder and decoder
    binarize: bool = False  # a new Bernoulli draw of grey pictures at every step; held-out ones are drawn once, by seed and row number
    likelihood: str = "bernoulli"  # bernoulli, continuous_bernoulli, gaussian, logistic_mixture
    sigma: float = 0.0  # gaussian: noise level in units of white = 1; 0 = learned
    squash: bool = False  # gaussian: its mean is a sigmoid, for pictures with much that is exactly black or white
    mixtures: int = 5  # logistic_mixture: components a pixel
    prior: str = "standard"  # standard, mixture, vamp
    components: int = 10  # of the mixture, or pseudo-inputs of vamp
    covariance: str = "diagonal"  # mixture: diagonal, full
    anneal_steps: int = 0  # mixture: steps in which its components cool from sharing every batch evenly to codes of their own, so that none starves;
    # 0 = off. Until then the KL of training is an upper bound; evaluation is always exact
    variational: bool = True  # False: plain autoencoder, no draw and no KL
    beta: float = 1.0  # weight of the KL in the training loss; evaluation always uses 1
    warmup: str = "constant"  # of beta: constant, linear, sigmoid, cyclical, cooling
    warmup_steps: int = 0
    warmup_from: float = 0.0  # cooling: beta at step 0
    cycles: int = 4  # cyclical: cycles in warmup_steps
    free_bits_dimension: float = 0.0  # nats a latent dimension that cost nothing
    free_bits_example: float = 0.0  # nats an example that cost nothing
    frozen: str = ""  # players that do not learn, such as those config.start_from brings: encoder, decoder, prior, with commas
    sound: fronts.Sound = dataclasses.field(default_factory=fronts.Sound)


def make(config: Config, spec) -> Task:
    m = config.model
    front = fronts.get(spec, m.sound, 2 ** len(m.hidden) if m.family == "conv" else 1)
    labels = _check(config, spec, front)
    shape, view = front.shape, front.analyse
    dtype = jnp.dtype(config.dtype)
    settings = {"gaussian": {"sigma": m.sigma, "squash": m.squash}, "logistic_mixture": {"components": m.mixtures}}.get(m.likelihood, {})
    likelihood = likelihoods.get(m.likelihood, **settings)
    prior = priors.get(m.prior, m.latent, m.components, m.covariance, shape)
    encoder = vae.Encoder(m.family, m.hidden, m.latent, m.activation, m.shortcut, m.bar, dtype)
    decoder = vae.Decoder(m.family, m.hidden, (*shape[:2], likelihood.channels(shape[2])), m.activation,
                          m.likelihood == "gaussian" and not m.sigma, m.autoregressive, front.level is not None, m.shortcut, m.bar, dtype)

    def condition_of(batch):
        return jax.nn.one_hot(batch["label"], len(labels)) if m.condition else None

    def known(batch):
        """What the encoder is given beside the picture: its class, its level."""
        condition = condition_of(batch)
        return condition if front.level is None else vae.join(front.level(batch)[:, None], condition)

    def targets(batch, key):
        x = view(batch)
        return (jax.random.uniform(key, x.shape) < x).astype(jnp.float32) if m.binarize else x

    def fixed_targets(batch):
        x = view(batch)
        if not m.binarize:
            return x
        key = jax.random.key(config.seed + 2)
        noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), x.shape[1:]))(batch["index"])
        return (noise < x).astype(jnp.float32)

    def init(key, batch):
        keys = jax.random.split(key, 3)
        x, condition = view(batch), condition_of(batch)
        params = {"encoder": encoder.init(keys[0], x, known(batch)),
                  "decoder": decoder.init(keys[1], jnp.zeros((len(x), m.latent)), condition, x),
                  "prior": prior.init(keys[2])}
        return params, {}

    def prior_of(params):
        # VampPrior's pseudo-inputs carry no label.
        return prior.dist(params["prior"], lambda x: encoder.apply(params["encoder"], x, None))

    def log_likelihood(outputs, x, batch):
        """log p(x | z) [b] of a picture, and of its level where that is modelled."""
        found = likelihood.log_prob(outputs, x)
        return found if front.level is None else found + divergences.log_normal(
            front.level(batch)[:, None], outputs["level"][:, None], outputs["level_logvar"])

    def elbo_terms(params, x, batch, key, temperature=None):
        """Per example: log p(x|z) [b], KL [b] (with a temperature a bound on it), KL per dimension [b, d] or None, posterior mean, logvar [b, d]."""
        mean, logvar = encoder.apply(params["encoder"], x, known(batch))
        z = divergences.reparameterize(key, mean, logvar) if m.variational else mean
        log_px = log_likelihood(decoder.apply(params["decoder"], z, condition_of(batch), x), x, batch)
        if not m.variational:
            return log_px, jnp.zeros_like(log_px), None, mean, logvar
        kl, kl_bd = priors.kl(prior_of(params), mean, logvar, z, temperature)
        return log_px, kl, kl_bd, mean, logvar

    def loss(params, variables, batch, key, step):
        key_x, key_z = jax.random.split(key)
        x = targets(batch, key_x)
        temperature = divergences.beta_weight(step, "cooling", 1.0, m.anneal_steps, start=m.latent) if m.anneal_steps else None
        log_px, kl, kl_bd, _, _ = elbo_terms(params, x, batch, key_z, temperature)
        beta = divergences.beta_weight(step, m.warmup, m.beta, m.warmup_steps, m.cycles, m.warmup_from)
        paid = divergences.free_bits(kl[:, None] if kl_bd is None else kl_bd, m.free_bits_dimension, m.free_bits_example)
        objective = beta * paid - jnp.mean(log_px)
        found = {"objective": objective, "loss": jnp.mean(kl - log_px), "reconstruction": -jnp.mean(log_px), "kl": jnp.mean(kl), "beta": beta}
        return objective, (variables, found)

    def metrics(params, variables, batch, key):
        x = fixed_targets(batch)
        log_px, kl, kl_bd, mean, _ = elbo_terms(params, x, batch, key)
        error = (likelihood.mean(draw_outputs(params, mean, condition_of(batch))) - x) ** 2
        found = {"loss": kl - log_px, "reconstruction": -log_px, "kl": kl, "mean": mean,
                 "floor": likelihood.floor(x), "mse": error.reshape(len(x), -1).mean(-1)}
        return found | ({"kl_per_dimension": kl_bd} if kl_bd is not None else {})

    def summary(sums, squares, count):
        average = {k: v / count for k, v in sums.items()}
        variance = squares["mean"] / count - average["mean"] ** 2
        found = {k: average[k] for k in ("loss", "reconstruction", "kl", "mse")}
        found |= {"loss_error": evaluate.standard_error(sums["loss"], squares["loss"], count), "active_units": np.sum(variance > ACTIVE)}
        if front.kind == "audio":
            found["rmse_db"] = front.range_db * math.sqrt(average["mse"])
        if np.any(average["floor"]):
            found["reconstruction_above_floor"] = average["reconstruction"] - average["floor"]
        if likelihood.bits:
            found["bits_per_dim"] = likelihoods.bits_per_dim(average["loss"], math.prod(shape))
        if "kl_per_dimension" in average:
            found |= {f"kl_per_dimension/{i:03d}": v for i, v in enumerate(average["kl_per_dimension"])}
        return found

    def draw_outputs(params, z, condition, draw=None):
        """Decoder outputs at z [n, d]; an autoregressive one reads its own rows: their mean (of a roll what is likelier, as it never read anything in
        between), or a draw with key `draw`."""
        if not m.autoregressive:
            return decoder.apply(params["decoder"], z, condition)

        def feedback(row, t):
            if draw is not None:
                return likelihood.sample(row, jax.random.fold_in(draw, t))
            return jnp.round(likelihood.mean(row)) if front.kind == "roll" else likelihood.mean(row)

        return decoder.apply(params["decoder"], z, condition, None, feedback)

    def fed_back(outputs, key):
        """The very rows an autoregressive decoder drew and read: [n, h, w, c]."""
        rows = m.bar if m.family == "hierarchical" else shape[0]  # it makes side by side bars, or examples
        rows_tnwc = jnp.moveaxis(outputs["x"].reshape(-1, rows, *outputs["x"].shape[2:]), 1, 0)[:, :, None]
        made = jax.vmap(lambda x, t: likelihood.sample({**outputs, "x": x}, jax.random.fold_in(key, t)))(rows_tnwc, jnp.arange(rows))
        return jnp.moveaxis(made[:, :, 0], 0, 1).reshape(-1, *shape)

    def encode(params, variables, batch):
        x = view(batch)
        mean, logvar = encoder.apply(params["encoder"], jnp.round(x) if m.binarize else x, known(batch))
        return {"mean": mean, "logvar": logvar} if m.variational else {"mean": mean}

    def expected(outputs):
        """{'image': [n, h, w, c] in data units, and 'level': [n] where that is modelled}"""
        return {"image": likelihood.mean(outputs)} | ({"level": outputs["level"]} if "level" in outputs else {})

    def decode(params, variables, code, condition=None):
        return expected(draw_outputs(params, code, condition))

    def sample(params, variables, key, request):
        """request: temperature [n] scales the code's distance from the prior's mean; label [n] int32 for a conditional model. Rolls come as
        [n, steps, columns]."""
        key_z, key_x = jax.random.split(key)
        n = request["temperature"].shape[0]
        dist = prior_of(params)
        centre = priors.mean(dist)
        z = centre + (priors.sample(dist, key_z, n) - centre) * request["temperature"][:, None]
        condition = jax.nn.one_hot(request["label"], len(labels)) if m.condition else None
        outputs = draw_outputs(params, z, condition, key_x)
        made = expected(outputs)
        if front.kind == "audio":
            return {"image/mean": made["image"], "audio/mean": front.sound(made["image"], made.get("level"), key_x)}
        found = {"mean": made["image"], "draw": fed_back(outputs, key_x) if m.autoregressive else likelihood.sample(outputs, key_x)}
        return {f"{front.kind}/{name}": front.columns(x) if front.columns else x for name, x in found.items()}

    def nll(params, variables, batch, key, samples):
        """Importance-weighted estimate of -log p(x) [b] with `samples` draws from the posterior (Burda et al. 2016, eq. 8)."""
        x, condition = fixed_targets(batch), condition_of(batch)
        mean, logvar = encoder.apply(params["encoder"], x, known(batch))
        dist, b = prior_of(params), len(x)
        # Draws a chunk so that a chunk is a few thousand decoder rows: big enough for the matrix units, small enough for the cache.
        chunk = max(c for c in range(1, samples + 1) if samples % c == 0 and c * b <= max(4096, b))

        def repeat(a):
            return None if a is None else jnp.repeat(a, chunk, axis=0)

        mean_r, logvar_r, x_r, condition_r = repeat(mean), repeat(logvar), repeat(x), repeat(condition)
        batch_r = {k: repeat(v) for k, v in batch.items()} if front.level else {}

        def body(total, i):
            z = divergences.reparameterize(jax.random.fold_in(key, i), mean_r, logvar_r)
            outputs = decoder.apply(params["decoder"], z, condition_r, x_r)
            log_w = log_likelihood(outputs, x_r, batch_r) + priors.log_prob(dist, z) - divergences.log_normal(z, mean_r, logvar_r)
            return jnp.logaddexp(total, jax.nn.logsumexp(log_w.reshape(b, chunk), axis=1)), None

        total, _ = jax.lax.scan(body, jnp.full(b, -jnp.inf), jnp.arange(samples // chunk))
        return {"nll": math.log(samples) - total}

    def exports():
        seen, label = spec.fields[front.kind], {"label": ("b", "int32")} if m.condition else {}
        draws = {"key": ("2", "uint32"), "temperature": ("b", "float32")}

        def decoded(params, variables, x):
            return decode(params, variables, x["z"], condition_of(x))

        def drawn(params, variables, x):
            return sample(params, variables, jax.random.wrap_key_data(x["key"], impl="threefry2x32"), x)

        return {"encode": (lambda params, variables, x: {"z": encode(params, variables, x)["mean"]},
                           {front.kind: (", ".join(map(str, ("b", *seen.shape))), seen.dtype)} | label),
                "decode": (decoded, {"z": (f"b, {m.latent}", "float32")} | label), "sample": (drawn, draws | label)}

    learning = tuple(player for player in PLAYERS if player not in m.frozen.split(","))
    return Task(init=init, moves={"train": Move(learning, loss)}, schedule=lambda step: ("train",), metrics=metrics,
                summary=summary, encode=encode, decode=decode, condition=condition_of if m.condition else None, sample=sample,
                measures={"nll": nll} if m.variational else {}, exports=exports(), front=front)


def _check(config: Config, spec, front: fronts.Front) -> tuple[str, ...]:
    """The names of the labels, or a UserError for settings that do not fit together or the data."""
    m = config.model
    allowed = {"family": vae.FAMILIES, "condition": ("", "label"), "activation": vae.ACTIVATIONS + ("gated",) * (m.family == "dense")}
    for name, choices in allowed.items():
        if getattr(m, name) not in choices:
            raise UserError(f"config.model.{name}={getattr(m, name)!r} is not one of {', '.join(c or repr('') for c in choices)}.")
    if m.latent < 1 or not m.hidden or any(not isinstance(h, int) or h < 1 for h in m.hidden):
        raise UserError(f"config.model.latent={m.latent} and config.model.hidden={m.hidden!r}: both need whole numbers of at least 1.")
    if m.frozen and not set(m.frozen.split(",")) < set(PLAYERS):
        raise UserError(f"config.model.frozen={m.frozen} should name some, not all, of {', '.join(PLAYERS)}.")
    shape = front.shape
    labels = spec.fields["label"].labels if "label" in spec.fields else ()
    if m.condition and not labels:
        raise UserError(f"config.model.condition='label' needs labels, but {config.data.dir} has none.")
    if m.condition and m.prior == "vamp":
        raise UserError("config.model.prior='vamp' has pseudo-inputs without a label; take another prior for a conditional model.")
    if front.level and m.prior == "vamp":
        raise UserError("config.model.prior='vamp' has pseudo-inputs without a level; take config.model.sound.normalise='fixed'.")
    if front.kind == "audio" and (m.binarize or m.likelihood != "gaussian"):
        raise UserError(f"a spectrogram is neither black and white nor made of 256 levels: take config.model.likelihood='gaussian', not "
                        f"{m.likelihood!r}, and config.model.binarize=False.")
    if front.kind == "roll" and (m.binarize or m.likelihood != "bernoulli"):
        raise UserError(f"the cells of a roll sound or do not: take config.model.likelihood='bernoulli', not {m.likelihood!r}, and "
                        "config.model.binarize=False.")
    step = 2 ** len(m.hidden)
    if m.family == "conv" and (shape[0] % step or shape[1] % step):
        raise UserError(f"{len(m.hidden)} stride-2 layers need a picture size that is a multiple of {step}, but {config.data.dir} has "
                        f"{shape[0]} x {shape[1]}; prepare it with another --size, or give fewer config.model.hidden.")
    if m.shortcut and m.autoregressive:
        raise UserError("config.model.shortcut=True makes all rows at once, an autoregressive decoder one after the other: set one of them to False.")
    if m.family == "hierarchical" and (m.bar < 1 or shape[0] % m.bar):
        raise UserError(f"the hierarchical family makes bars of config.model.bar={m.bar} rows, and {config.data.dir} has {shape[0]} rows: give one "
                        f"that divides {shape[0]}.")
    if m.autoregressive and m.family not in vae.ROWS:
        raise UserError("config.model.autoregressive=True is for decoders that go row by row; set config.model.family='lstm' or 'hierarchical'.")
    if m.free_bits_dimension and (m.prior == "vamp" or m.prior == "mixture" and (m.components > 1 or m.covariance == "full")):
        raise UserError(f"config.model.free_bits_dimension needs a KL by dimension, which the {m.prior} prior has not; use free_bits_example.")
    if m.anneal_steps < 0 or m.anneal_steps and (m.prior != "mixture" or m.components < 2 or m.latent < 2):
        raise UserError(f"config.model.anneal_steps={m.anneal_steps} is for config.model.prior='mixture' of several components and codes of several "
                        "numbers; set it to 0.")
    if m.anneal_steps and config.data.batch // config.optim.accumulate < m.components:
        raise UserError(f"config.model.anneal_steps shares each batch out over the components: of {m.components}, config.data.batch divided by "
                        "config.optim.accumulate must hold at least as many examples; or set it to 0.")
    # These two say themselves what they cannot do.
    divergences.beta_weight(0, m.warmup, m.beta, m.warmup_steps, m.cycles, m.warmup_from)
    divergences.free_bits(jnp.zeros((1, 1)), m.free_bits_dimension, m.free_bits_example)
    return tuple(labels)
