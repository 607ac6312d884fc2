"""RAVE as a Task: stage 1 learns a representation by the spectral distance, stage 2 freezes the encoder and sharpens the decoder against critics.

Latents [b, n, d] are n frames of d numbers a crop. The KL is nats a latent frame, with the half, averaged over frames (the published beta is half of
ours); spectral distances are ratios and logarithms (losses/spectral.py). Moves: `represent` (encoder, decoder), `generate` (decoder), `criticise`
(critic). What evaluation must know of the stage is variables['decoder']['noise'], the weight of the noise branch: 0 in stage 1, 1 from
the decoder's first step of stage 2 on.
Discrete latents are sums of codes, one of each of the quantiser's residual levels (losses/quantization.py). The codebooks are variables of one more
player, `quantizer`, that only `represent` moves; they learn from all frames of a crop, also those of the zeros behind a short recording. Where other
latents are posterior means these are the sums, vectors too; `encode` gives `indices` int32 [b, n, levels] beside them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import evaluate, fronts, streaming
from vae_jax.config import Config, Optim, UserError
from vae_jax.dsp import augment as augmentation
from vae_jax.dsp import pqmf
from vae_jax.layers import convolutions_1d
from vae_jax.layers.streaming import Signal
from vae_jax.losses import adversarial, divergences, quantization, spectral
from vae_jax.models import critics, rave
from vae_jax.tasks import Move, Task

ADVERSARIES = {"hinge": (adversarial.hinge_critic, adversarial.hinge_generator),
               "least_squares": (adversarial.least_squares_critic, adversarial.least_squares_generator)}
LATENTS = ("variational", "wasserstein", "spherical", "discrete")
ACTIVE = 0.01  # variance over frames of a posterior mean above which a latent counts as active
LEAST_SCALE = 1e-4  # of a posterior's standard deviation


@dataclasses.dataclass
class Model:
    version: int = 1  # 1: the paper's network; 2: the wider, later one
    capacity: int = 64  # channels of the outermost layer, doubled at every stage
    latent: int = 128
    ratios: tuple[int, ...] = (4, 4, 4, 2)  # of the four stages; hop = bands x their product
    bands: int = 16  # of the filter bank; 1 = none
    attenuation_db: float = 100.0  # of the filter bank
    causal: bool = False  # look at nothing ahead: a stream is late by the filter bank alone
    snake: bool = False  # periodic activations
    amplitudes: int = 5  # frequencies a band at which the noise branch is set; 0 = no noise branch
    noise_ratios: tuple[int, ...] = (4, 4, 4)
    noise_hidden: int = 64
    latents: str = "variational"  # variational; wasserstein: no draw, pulled to N(0, I) by a kernel distance; spherical: on the unit sphere; discrete
    codes: int = 1024  # discrete: K of a codebook. New frames are drawn of each level's codes by itself, as often as training chose them lately
    levels: int = 16  # discrete: codebooks, each of codes for what the ones before left
    decay: float = 0.99  # discrete: of the averages that move the codebooks
    restart: float = 0.1  # discrete: a code with fewer frames a batch than this, on average, begins anew; 0 = never
    kmeans: int = 50  # discrete: rounds of k-means on the first batch; 0 = random codebooks
    extra: int = 0  # channels of noise that the decoder is given beside the latents
    beta: float = 0.2  # weight of the KL, the kernel distance, or the commitment to codes; of spherical latents, which have none, of nothing
    beta_from: float = 0.0  # beta rises from here (and above 0) by a constant factor a step ...
    beta_steps: int = 0  # ... for so many steps; 0 = constant
    distance: str = "squared"  # spectral distance: squared (public code) or frobenius (paper)
    epsilon: float = 1e-7  # squared: added to magnitudes before their logarithm in training; evaluation has its own
    windows: tuple[int, ...] = spectral.WINDOWS  # samples, of the wave and of sub-bands
    full_band: bool = True  # the distance of the wave beside that of the sub-bands; False only to time what others time
    representation_steps: int = 1_000_000  # length of stage 1
    critic_every: int = 2  # steps of stage 2 of which the first is the critic's
    critic_scales: int = 3  # critics of the wave, each at half the rate of the one before
    critic_periods: tuple[int, ...] = ()  # critics of every period-th sample
    critic_resolutions: tuple[int, ...] = ()  # critics of spectra with windows of so many samples
    critic_capacity: int = 64
    critic_optim: Optim = dataclasses.field(default_factory=lambda: Optim(lr=1e-4, b1=0.5, b2=0.9))
    adversarial: str = "hinge"  # hinge, least_squares
    adversarial_weight: float = 3.0  # of the mean over critics; the public code weighs their sum by 1
    matching: str = "absolute"  # feature matching: absolute, or relative to the real features
    matching_weight: float = 10.0  # as published in writing; the public code of v2.3 multiplies twice (100)
    high_hz: float = 4000.0  # `high_error_db` is the error above it
    augment: augmentation.Augment = dataclasses.field(default_factory=augmentation.Augment)


def network(m: Model, channels: int, dtype=jnp.float32) -> rave.Rave:
    parts = 2 if m.latents == "variational" else 1  # mean and scale
    return rave.Rave(m.version, m.capacity, parts * m.latent, parts, m.ratios, m.bands, channels, m.attenuation_db, m.causal, m.snake, m.amplitudes,
                     m.noise_ratios, m.noise_hidden, m.extra, dtype)


def live(config: Config, spec) -> streaming.Live:
    """The streams of a run, and its latency."""
    m = config.model
    net = network(m, spec.fields["audio"].shape[-1], jnp.dtype(config.dtype))
    codebooks = jax.eval_shape(lambda: quantization.init(quantizer(m), jax.random.key(0))) if m.latents == "discrete" else None
    return streaming.live(net, m.latent, lambda statistics, codebooks: code_of(m, statistics, codebooks)["mean"], codebooks)


def quantizer(m: Model) -> quantization.Quantizer:
    """Of discrete latents. Raises UserError for settings that do not go together."""
    return quantization.get("ema", m.codes, m.latent, 1, m.levels, m.decay, m.restart, m.kmeans)


def posterior(latents: str, statistics):
    """(mean, standard deviation or None) of what an encoder gives [b, n, outputs]; float32."""
    statistics = statistics.astype(jnp.float32)
    if latents == "variational":
        mean, scale = jnp.split(statistics, 2, -1)
        return mean, jax.nn.softplus(scale) + LEAST_SCALE
    if latents == "spherical":  # finite at silence, where all are 0
        return statistics * jax.lax.rsqrt(jnp.sum(jnp.square(statistics), -1, keepdims=True) + 1e-12), None
    return statistics, None


def code_of(m: Model, statistics, codebooks=None) -> dict:
    """What `encode` gives for the statistics [b, n, outputs] of an encoder; codebooks: variables['quantizer'] of discrete latents."""
    mean, scale = posterior(m.latents, statistics)
    if m.latents == "discrete":
        mean, indices, _ = quantization.quantise(quantizer(m), codebooks, mean)
        return {"mean": mean, "indices": indices}
    return {"mean": mean} if scale is None else {"mean": mean, "logvar": 2 * jnp.log(scale)}


def draw_codes(m: Model, codebooks: dict, key, frames: int, temperature_n):
    """Latents [n, frames, latent]: each level's codes drawn by themselves, as often as training chose them lately, to the power 1 / temperature."""
    count = codebooks["count"].reshape(m.levels, m.codes)
    share = (count / jnp.maximum(jnp.max(count, -1, keepdims=True), 1e-30)) ** (1 / jnp.maximum(temperature_n, 1e-3))[:, None, None]
    choose = lambda key, share: jax.random.choice(key, m.codes, (frames,), p=share)
    indices = jax.vmap(jax.vmap(choose))(jax.random.split(key, share.shape[:2]), share)
    return quantization.lookup(quantizer(m), codebooks, indices.swapaxes(1, 2))


def latent_figures(code, hop: int, valid) -> dict:
    """{'mean', 'square' of the posterior means, 'kl' in nats where there is one}: each [b, d], over the frames that begin in the `valid` [b] samples."""
    found = {"mean": code["mean"], "square": jnp.square(code["mean"])}
    found |= {"kl": divergences.kl_normal(code["mean"], code["logvar"])} if "logvar" in code else {}
    real = spectral.in_sound(valid, code["mean"].shape[1], hop)
    return {name: jnp.mean(values, 1, where=real) for name, values in found.items()}


def make(config: Config, spec) -> Task:
    m = config.model
    _check(config, spec)
    rate, channels = spec.facts["rate"], spec.fields["audio"].shape[-1]
    hop, late = m.bands * math.prod(m.ratios), pqmf.bank(m.bands, m.attenuation_db, m.causal).delay
    net = network(m, channels, jnp.dtype(config.dtype))
    critic = critics.Critics(m.critic_scales, m.critic_periods, m.critic_resolutions, m.critic_capacity, jnp.dtype(config.dtype))
    critic_loss, generator_loss = ADVERSARIES[m.adversarial]
    q = quantizer(m) if m.latents == "discrete" else None
    crop, wave = _trained_crop(config), fronts.waves
    bits = m.levels * math.log2(m.codes) * rate / hop  # a second, of discrete latents

    def heard(key, batch):
        """What training hears of a batch [b, crop, c]."""
        return augmentation.augment(key, wave(batch), rate, m.augment, crop)

    def apply(method, params, variables, *inputs, train=False):
        """A method of the network; with `train` also its new statistics."""
        stored = streaming.stored(params, variables)
        if not train:
            return net.apply(stored, *inputs, method=method)
        made, changed = net.apply(stored, *inputs, True, method=method, mutable=["batch_stats"])
        return made, changed.get("batch_stats", {}).get("encoder", {})

    def bands_of(x_btc, first=0):
        return net.apply({}, Signal(rave.frames_of(x_btc, m.bands), first=first), method="analyse")

    def wave_of(bands_signal):
        return rave.samples_of(net.apply({}, bands_signal, method="synthesise").x, channels)

    def distances(x_btc, x_bands, y_btc, y_bands):
        """{'sub_bands': .., 'full_band': ..} over the whole batch."""
        found = {"sub_bands": spectral.distance(spectral.rows(x_bands.x), spectral.rows(y_bands.x), m.distance, m.windows, m.epsilon)}
        if m.full_band:
            pair = map(spectral.rows, spectral.aligned(x_btc, y_btc, late))
            found["full_band"] = spectral.distance(*pair, m.distance, m.windows, m.epsilon)
        return found

    def init(key, batch):
        keys = jax.random.split(key, 3)
        x = jnp.zeros((1, hop, channels))
        made = convolutions_1d.init(net, keys[0], Signal(rave.frames_of(x, m.bands)), m.latent, keys[1])
        variables = {"encoder": made.get("batch_stats", {}).get("encoder", {}), "decoder": {"noise": jnp.float32(0.0)}}
        params = {**made["params"], "critic": convolutions_1d.init(critic, keys[2], wave(batch)[:1])["params"]}
        if q:
            params, variables = params | {"quantizer": {}}, variables | {"quantizer": quantization.init(q, jax.random.fold_in(key, 3))}
        return params, variables

    def draw(key, mean, scale):
        return mean if scale is None else mean + scale * jax.random.normal(key, mean.shape)

    def learn_codes(codebooks, z, key):
        """(the codes of a batch, the codebooks behind it, figures)"""
        begin, anew = jax.random.split(key)
        codebooks = quantization.start(q, codebooks, z, begin)
        z_q, indices, _ = quantization.quantise(q, codebooks, z)
        moved, restarts = quantization.update(q, codebooks, z, indices, anew)
        used = {name: jnp.mean(quantization.statistics(quantization.counts(q, indices))[name]) for name in ("perplexity", "usage")}
        return z_q, moved, {"commitment": quantization.losses(q, codebooks, z, indices)[1], "restarts": jnp.sum(restarts)} | used

    def represent(params, variables, batch, key, step):
        keys = jax.random.split(key, 4)
        x = heard(keys[0], batch)
        x_bands = bands_of(x)
        statistics, new = apply("encode", params, variables, x_bands, train=True)
        mean, scale = posterior(m.latents, statistics.x)
        moved, used = {}, {}
        if q:
            z, moved["quantizer"], used = learn_codes(variables["quantizer"], mean, keys[1])
        else:
            z = draw(keys[1], mean, scale)
        y_bands = apply("decode", params, variables, statistics.replace(x=z), keys[2])
        found = distances(x, x_bands, wave_of(y_bands) if m.full_band else None, y_bands)
        beta = divergences.beta_weight(step, "cooling" if m.beta_steps else "constant", m.beta, m.beta_steps, start=m.beta_from)
        loss = sum(found.values())
        if m.latents == "variational":
            found["kl"] = jnp.mean(jnp.sum(divergences.kl_normal(mean, 2 * jnp.log(scale)), -1))
            loss = loss + beta * found["kl"]
        elif m.latents == "wasserstein":
            found["mmd"] = divergences.kernel_distance(z.reshape(-1, m.latent), jax.random.normal(keys[3], (z.shape[0] * z.shape[1], m.latent)))
            loss = loss + beta * found["mmd"]
        elif q:
            loss = loss + beta * used["commitment"]
        variables = {**variables, **moved, "encoder": new, "decoder": {"noise": jnp.float32(0.0)}}
        return loss, (variables, {"loss": loss, "beta": beta} | found | used)

    def frozen(params, variables, batch, key):
        """(sound, its sub-bands, latents) of stage 2: encoder and codebooks as they are, statistics and all."""
        keys = jax.random.split(key, 2)
        x = heard(keys[0], batch)
        x_bands = bands_of(x)
        statistics = apply("encode", params, variables, x_bands)
        z = code_of(m, statistics.x, variables["quantizer"])["mean"] if q else draw(keys[1], *posterior(m.latents, statistics.x))
        return x, x_bands, statistics.replace(x=jax.lax.stop_gradient(z))

    def generate(params, variables, batch, key, step):
        key_x, key_y = jax.random.split(key)
        x, x_bands, z = frozen(params, variables, batch, key_x)
        y_bands = apply("decode", params, variables, z, key_y, jnp.float32(1.0))
        y = wave_of(y_bands)
        found = distances(x, x_bands, y, y_bands)
        real, fake = spectral.aligned(x, y, late)
        scores, features = critic.apply({"params": params["critic"]}, fake)
        _, real_features = critic.apply({"params": params["critic"]}, real)
        adversary = generator_loss(scores)
        matching = adversarial.feature_matching(real_features, features, m.matching)
        loss = sum(found.values()) + m.adversarial_weight * adversary + m.matching_weight * matching
        return loss, ({**variables, "decoder": {"noise": jnp.float32(1.0)}},
                      {"loss": loss, "adversarial": adversary, "feature_matching": matching} | found)

    def criticise(params, variables, batch, key, step):
        key_x, key_y = jax.random.split(key)
        x, _, z = frozen(params, variables, batch, key_x)
        y = wave_of(apply("decode", params, variables, z, key_y, jnp.float32(1.0)))
        real, fake = spectral.aligned(x, jax.lax.stop_gradient(y), late)
        scores, _ = critic.apply({"params": params["critic"]}, jnp.concatenate([real, fake]))
        reals, fakes = ([s[:len(x)] for s in scores], [s[len(x):] for s in scores])
        loss = critic_loss(reals, fakes)
        mean = lambda found: sum(jnp.mean(s) for s in found) / len(found)
        return loss, (variables, {"loss": loss, "real_score": mean(reals), "fake_score": mean(fakes)})

    def encode(params, variables, batch, first=0):
        """first: see decode."""
        statistics = apply("encode", params, variables, bands_of(wave(batch), first * math.prod(m.ratios)))
        return code_of(m, statistics.x, variables.get("quantizer"))

    def decode(params, variables, code, condition=None, key=None, first=0):
        """{'audio': [b, t, c]}. Its draws of noise are the same at every call without a key. first: the code's first frame is that one of a longer
        code, whose noise it then has."""
        key = jax.random.key(0) if key is None else key
        noise = variables["decoder"]["noise"] if m.amplitudes else None
        return {"audio": wave_of(apply("decode", params, variables, Signal(code, first=first), key, noise))}

    def sample(params, variables, key, request):
        """request: temperature [n] scales the latents, crops of the training length drawn from the prior N(0, I); of codes: see draw_codes."""
        key_z, key_x = jax.random.split(key)
        n, frames = len(request["temperature"]), config.data.crop // hop
        if q:
            z = draw_codes(m, variables["quantizer"], key_z, frames, request["temperature"])
        else:
            z = jax.random.normal(key_z, (n, frames, m.latent)) * request["temperature"][:, None, None]
            z = posterior("spherical", z)[0] if m.latents == "spherical" else z
        return {"audio/mean": decode(params, variables, z, key=key_x)["audio"]}

    def metrics(params, variables, batch, key):
        x = wave(batch)
        code = encode(params, variables, batch)
        y = decode(params, variables, code["mean"])["audio"]
        errors = lambda y: spectral.of_clips(x, y, rate, late, m.distance, m.windows, m.high_hz, batch["valid"])
        latents = latent_figures(code, hop, batch["valid"])
        if q:  # codes of frames behind the sound become ones that there are not, which are not counted
            real = spectral.in_sound(batch["valid"], code["indices"].shape[1], hop)
            latents["counts"] = jax.vmap(lambda i: quantization.counts(q, i))(jnp.where(real, code["indices"], m.levels * m.codes))
        return errors(y) | {"silence_distance": errors(jnp.zeros_like(y))["distance"]} | latents

    def summary(sums, squares, count):
        average = {k: v / count for k, v in sums.items()}
        found = {"loss": average["distance"], "loss_error": evaluate.standard_error(sums["distance"], squares["distance"], count)}
        found |= {k: average[k] for k in ("silence_distance", "error_db", "high_error_db")}
        found["active_units"] = np.sum(average["square"] - average["mean"] ** 2 > ACTIVE)
        if "kl" in average:
            found["kl"] = np.sum(average["kl"])
        if q:
            used = jax.device_get(quantization.statistics(sums["counts"]))
            found |= {"perplexity": np.mean(used["perplexity"]), "usage": np.mean(used["usage"]), "bits_per_second": bits,
                      "bits_per_second_empirical": np.sum(np.log2(used["perplexity"])) * rate / hop}  # as often as each code comes, by itself
            found |= {f"{name}_{level + 1}": used[name][level] for name in ("perplexity", "usage") for level in range(m.levels)}
        return found

    def schedule(step):
        if step < m.representation_steps:
            return ("represent",)
        return ("criticise",) if (step - m.representation_steps) % m.critic_every == 0 else ("generate",)

    def about():
        samples = live(config, spec).latency
        said = f"{rate / hop:.3g} a second" + (f", of {m.levels} codes, {bits / 1000:.3g} kbit a second" if q else "")
        return f"a frame of latents every {hop} samples, {said}; played live {samples} samples late ({1000 * samples / rate:.0f} ms), and a block"

    learning = ("encoder", "quantizer", "decoder") if q else ("encoder", "decoder")
    moves = {"represent": Move(learning, represent), "generate": Move(("decoder",), generate),
             "criticise": Move(("critic",), criticise)}
    return Task(init=init, moves=moves, metrics=metrics, summary=summary, schedule=schedule,
                stage=lambda step: "representation" if step <= m.representation_steps else "adversarial",
                encode=encode, decode=decode, sample=sample, optim={"critic": m.critic_optim}, exports=_exports(config, spec, encode, decode),
                front=fronts.Front("wave", (config.data.crop, channels), wave, rate=rate, delay=late), about=about)


def _exports(config: Config, spec, encode, decode) -> dict:
    m, channels = config.model, spec.fields["audio"].shape[-1]

    @functools.cache
    def stream():
        return live(config, spec).model

    audio, key = (f"b, {m.bands * math.prod(m.ratios)}*n, {channels}", "float32"), ("2", "uint32")

    def start(params, variables, x):
        return {"state": stream().start(x["audio"].shape[0], x["key"])}

    def step(params, variables, x):
        state, y = stream().step(params, variables, x["state"], x["audio"])
        return {"state": state, "audio": y}

    def lookup(params, variables, x):
        return {"z": quantization.lookup(quantizer(m), variables["quantizer"], x["indices"])}

    codes = {"codes": (lambda params, variables, x: {"indices": encode(params, variables, x)["indices"]}, {"audio": audio}),
             "lookup": (lookup, {"indices": (f"b, n, {m.levels}", "int32")})}
    return {"encode": (lambda params, variables, x: {"z": encode(params, variables, x)["mean"]}, {"audio": audio}),
            "decode": (lambda params, variables, x: decode(params, variables, x["z"]), {"z": (f"b, n, {m.latent}", "float32")}),
            **(codes if m.latents == "discrete" else {}),
            "start": (start, {"audio": audio, "key": key}), "step": (step, {"state": "start", "audio": audio})}


def _check(config: Config, spec) -> None:
    """Raises UserError for settings that do not fit together or the data."""
    m = config.model
    if "audio" not in spec.fields:
        raise UserError(f"RAVE is for sound, but the data set {spec.name} holds {', '.join(spec.fields)}; prepare it with data_prep.waveforms.")
    for name, choices in {"version": (1, 2), "latents": LATENTS, "distance": spectral.DEFINITIONS, "adversarial": tuple(ADVERSARIES),
                          "matching": adversarial.DEFINITIONS}.items():
        if getattr(m, name) not in choices:
            raise UserError(f"config.model.{name}={getattr(m, name)!r} is not one of {', '.join(map(str, choices))}.")
    least = {"capacity": 1, "latent": 1, "bands": 1, "representation_steps": 0, "critic_every": 2, "critic_capacity": 1, "critic_scales": 0,
             "noise_hidden": 1, "extra": 0, "codes": 2, "levels": 1, "restart": 0, "kmeans": 0, "beta": 0, "beta_steps": 0,
             "adversarial_weight": 0, "matching_weight": 0, "high_hz": 0}
    for name, value in least.items():
        if not getattr(m, name) >= value:
            raise UserError(f"config.model.{name}={getattr(m, name)} is too small: give at least {value}.")
    if not m.epsilon > 0:
        raise UserError(f"config.model.epsilon={m.epsilon} must be above 0: silence has no logarithm.")
    quantizer(m)
    several = {"ratios": (2, "one to four", range(1, 5)), "windows": (4, "at least one", range(1, 100)), "noise_ratios": (1, "at least one", range(1, 100)),
               "critic_periods": (2, "any number", range(100)), "critic_resolutions": (16, "any number", range(100))}
    for name, (smallest, count, counts) in several.items():
        if len(getattr(m, name)) not in counts or any(value < smallest for value in getattr(m, name)):
            raise UserError(f"config.model.{name}={getattr(m, name)}: give {count}, each at least {smallest}.")
    if any(window % 4 for window in m.windows):
        raise UserError(f"config.model.windows={m.windows}: each must be a multiple of 4.")
    if not m.critic_scales and not m.critic_periods and not m.critic_resolutions:
        raise UserError("config.model: stage 2 needs a critic: critic_scales, critic_periods or critic_resolutions.")
    hop = m.bands * math.prod(m.ratios)
    if m.amplitudes and (m.amplitudes < 2 or math.prod(m.ratios) % math.prod(m.noise_ratios)):
        raise UserError(f"config.model: amplitudes={m.amplitudes} must be 0 or at least 2, and the product of ratios={m.ratios} a multiple of that of "
                        f"noise_ratios={m.noise_ratios}.")
    augmentation.check(m.augment, spec.facts["rate"])
    crop, late = config.data.crop, pqmf.bank(m.bands, m.attenuation_db, m.causal).delay
    shortest = max(max(m.windows) // 2 * m.bands, max(m.windows) // 2 + late) + 1
    if crop % hop or _trained_crop(config) < shortest:
        raise UserError(f"config.data.crop={crop} samples must be a multiple of the hop {hop} and so long that at least {shortest} are trained on: "
                        f"set --config.data.crop={-(-augmentation.source_samples(m.augment, max(crop, shortest)) // hop) * hop}.")
    if m.beta_steps and not 0 < m.beta_from:
        raise UserError(f"config.model.beta_steps={m.beta_steps} lets beta rise from beta_from={m.beta_from}, which must be above 0: 1e-6, say.")


def _trained_crop(config: Config) -> int:
    """Samples of a crop that are trained on: fewer than it holds where a raised pitch would use up more."""
    m = config.model
    hop, crop = m.bands * math.prod(m.ratios), config.data.crop
    while crop > 0 and augmentation.source_samples(m.augment, crop) > config.data.crop:
        crop -= hop
    return crop
