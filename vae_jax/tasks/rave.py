"""RAVE as a Task: stage 1 learns a representation by the spectral distance, stage 2 freezes the encoder and sharpens the decoder against critics.

Latents [b, n, d] are n frames of d numbers a crop. The KL is nats a latent frame, with the half, averaged over frames (the published beta is half of
ours); spectral distances are ratios and logarithms (losses/spectral.py). Moves: `represent` (encoder, decoder), `generate` (decoder), `criticise`
(critic). What evaluation must know of the stage is variables['decoder']['noise'], the weight of the noise branch: 0 in stage 1, 1 from
the decoder's first step of stage 2 on.
Discrete latents are sums of codes, one of each of the quantiser's residual levels (losses/quantization.py). The codebooks are variables of one more
player, `quantizer`, that only `represent` moves; they learn from all frames of a crop, also those of the zeros behind a short recording. Where other
latents are posterior means these are the sums, vectors too; `encode` gives `indices` int32 [b, n, levels] beside them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import evaluate, fronts, streaming
from vae_jax.config import Config
from vae_jax.dsp import augment as augmentation
from vae_jax.dsp import pqmf
from vae_jax.layers import convolutions_1d
from vae_jax.layers.streaming import Signal
from vae_jax.losses import adversarial, divergences, quantization, spectral
from vae_jax.models import critics, rave
from vae_jax.tasks import Move, Task
from vae_jax.tasks.rave_settings import ADVERSARIES, Model, check, quantizer, trained_crop

ACTIVE = 0.01  # variance over frames of a posterior mean above which a latent counts as active
LEAST_SCALE = 1e-4  # of a posterior's standard deviation


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
    """{'mean', 'square' of the posterior means, 'kl' in nats where there is one}: each [b, d], over frames that begin in the `valid` [b] samples."""
    found = {"mean": code["mean"], "square": jnp.square(code["mean"])}
    found |= {"kl": divergences.kl_normal(code["mean"], code["logvar"])} if "logvar" in code else {}
    real = spectral.in_sound(valid, code["mean"].shape[1], hop)
    return {name: jnp.mean(values, 1, where=real) for name, values in found.items()}


def make(config: Config, spec) -> Task:
    m = config.model
    check(config, spec)
    rate, channels = spec.facts["rate"], spec.fields["audio"].shape[-1]
    hop, late = m.bands * math.prod(m.ratios), pqmf.bank(m.bands, m.attenuation_db, m.causal).delay
    net = network(m, channels, jnp.dtype(config.dtype))
    critic = critics.Critics(m.critic_scales, m.critic_periods, m.critic_resolutions, m.critic_capacity, jnp.dtype(config.dtype))
    critic_loss, generator_loss = ADVERSARIES[m.adversarial]
    q = quantizer(m) if m.latents == "discrete" else None
    crop, wave = trained_crop(config), fronts.waves

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

    def represent(params, variables, batch, key, step):
        keys = jax.random.split(key, 4)
        x = heard(keys[0], batch)
        x_bands = bands_of(x)
        statistics, new = apply("encode", params, variables, x_bands, train=True)
        mean, scale = posterior(m.latents, statistics.x)
        moved, used = {}, {}
        if q:
            z, moved["quantizer"], used = quantization.learn(q, variables["quantizer"], mean, keys[1])
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
            found |= quantization.summary(q, sums["counts"], rate / hop)
            found |= {f"{name}_{level + 1}": used[name][level] for name in ("perplexity", "usage") for level in range(m.levels)}
        return found

    def schedule(step):
        if step < m.representation_steps:
            return ("represent",)
        return ("criticise",) if (step - m.representation_steps) % m.critic_every == 0 else ("generate",)

    def about():
        samples = live(config, spec).latency
        said = f"{rate / hop:.3g} a second" + (f", of {m.levels} codes, {quantization.bits(q) * rate / hop / 1000:.3g} kbit a second" if q else "")
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
