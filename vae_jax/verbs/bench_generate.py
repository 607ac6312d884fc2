"""What `bench --generate` times: codes or samples drawn one after another by the cached step of an autoregressive net, untrained.

Of a prior over codes of pictures the same draws by a jitted full pass at every position are timed beside it, in turns; of FULL passes the median is
taken times the number of positions.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from vae_jax import config as configs
from vae_jax import data as datas
from vae_jax import records, tasks
from vae_jax.config import UserError
from vae_jax.losses import discretized
from vae_jax.models import pixelcnn, wavenet
from vae_jax.tasks import code_prior, vqvae, wave_vqvae

ROUNDS, FULL = 3, 2
SECONDS = 1  # of sound, for each sequence


def main(config, count: int) -> dict:
    """Figures of `count` maps or sequences side by side. Raises UserError for a task without such a net."""
    draw = {"code_prior": _maps, "wave_vqvae": _sequences}.get(config.task)
    if draw is None:
        raise UserError(f"--generate times what draws one code or sample after another, and {config.name} is of the task {config.task!r}; give "
                        "experiments/code_prior.py:photos or experiments/peers.py:wavenet, say.")
    configs.check(config, 1, jax.default_backend())
    device = jax.devices()[0]
    return {"name": config.name, "device": device.device_kind, "jax": jax.__version__, "dtype": config.dtype, "count": count, **draw(config, count)}


def _maps(config, count):
    spec, m = records.open_folder(config.data.dir), config.model
    h, w, _ = tasks.get(config, spec).front.shape  # says so where settings and data do not fit
    q = vqvae.quantizer(m.autoencoder)
    h, w = h >> m.autoencoder.downs, w >> m.autoencoder.downs
    w *= q.groups * q.levels
    labels = len(spec.fields["label"].labels) if m.condition else 0
    net = code_prior.network(m, q.codes, labels, q.groups * q.levels, jnp.dtype(config.dtype))
    label = jnp.zeros(count, jnp.int32) if labels else None
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((count, h, w), jnp.int32), label)

    @jax.jit
    def full(params, codes, position, key):
        logits = net.apply(params, codes, label).reshape(count, h * w, -1)[:, position]
        drawn = discretized.softmax_draw(jax.random.uniform(key, (count,)), logits)
        return codes.reshape(count, -1).at[:, position].set(drawn).reshape(codes.shape)

    cached = lambda i: pixelcnn.generate(net, params, jax.random.key(i), (count, h, w), label)
    codes, passes, found = cached(0), [], []
    full(params, codes, 0, jax.random.key(0)).block_until_ready()
    for i in range(ROUNDS):
        found.append(_seconds(lambda: cached(i)))
        passes += [_seconds(lambda: full(params, codes, h * w // 2, jax.random.key(k))) for k in range(FULL)]
    seconds, each = statistics.median(found), statistics.median(passes)
    return {"map": [h, w], "layers": m.layers, "channels": m.channels, "seconds": round(seconds, 3), "codes_per_sec": round(count * h * w / seconds),
            "full_pass_ms": round(1000 * each, 2), "times_as_fast": round(each * h * w / seconds, 1)}


def _sequences(config, count):
    m, spec = config.model, datas.cropped(records.open_folder(config.data.dir), config.data.crop)
    rate = tasks.get(config, spec).front.rate  # says so where settings and data do not fit
    net, shape = wave_vqvae.network(m, jnp.dtype(config.dtype)), (count, SECONDS * rate)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    generate = lambda i: wavenet.generate(net, params, jax.random.key(i), shape)
    generate(0).block_until_ready()
    seconds = statistics.median(_seconds(lambda: generate(i)) for i in range(ROUNDS))
    return {"layers": m.layers * m.cycles, "residual": m.residual, "skip": m.skip, "receptive_field": wavenet.receptive_field(net),
            "seconds": round(seconds, 3), "samples_per_sec": round(count * shape[1] / seconds),
            "real_time_factor": round(shape[1] / rate / seconds, 3)}


def _seconds(function) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin
