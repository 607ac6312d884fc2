"""A trained RAVE played live: pure functions that take a state and a block of sound to the next state and a block, of the model and of its halves.

A stream, late by its delay, is the form for whole sounds: latents are posterior means, the noise branch has the weight that the run's variables give
it, and its draws depend on the key in the state and on a frame's number alone. What is held of the past is in the state, a tree of arrays: a new one
from `start` is a reset, a copy is a place to go back to.
"""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.dsp import pqmf
from vae_jax.latents import fidelity
from vae_jax.layers import streaming
from vae_jax.layers.streaming import Signal
from vae_jax.models import rave

TURN = 2**30  # sub-band frames, days, after which a stream counts from half of them on: int32 would end, and with it the sound


class Stream(NamedTuple):
    """start(batch, key, first) -> state;  step(params, variables, state, x) -> (state, y), for blocks x of any multiple of the hop, of that batch.

    key: of the draws of noise, two numbers (0, 0 is that of whole sounds). first: number of the latent frame that comes in first; latents from the
    stream `encode` begin with -encode.delay. delay: frames of y, or samples where y is sound, by which it is behind the form for whole sounds.
    """

    start: Callable
    step: Callable
    delay: int


class Live(NamedTuple):
    """model: samples [b, t, c] -> samples; encode: samples -> latents [b, t / hop, d]; decode: latents -> samples.

    Latents from before the beginning are 0. latency: samples that what goes into the model comes out later, filter bank included; whoever gathers
    blocks waits for a block besides.
    """

    model: Stream
    encode: Stream
    decode: Stream
    hop: int
    latency: int


def live(net: rave.Rave, latent: int, mean: Callable, codebooks=None) -> Live:
    """The streams of a network; mean(what its encoder gives [b, n, outputs], variables["quantizer"]) -> posterior means [b, n, latent]; codebooks:
    shapes of variables["quantizer"], None where there is none. Nothing is run.

    variables["analysis"], where it is there, cuts the model's latents to their first directions, as many as it says, which may change from block to
    block, and leaves the others at their mean: {"mean" [d], "components" [d, d], "directions" []}, see `fidelity.crop`.
    """
    frames, samples = math.prod(net.ratios), net.bands * net.channels  # sub-band frames a hop, samples a sub-band frame
    abstract = jax.eval_shape(lambda s, key: net.init(key, s, latent, key), Signal(jnp.zeros((1, frames, samples))), jax.random.key(0))

    def latents(net, s, codebooks):
        return net.encode(net.analyse(s)).map(lambda x: mean(x, codebooks))

    def encode(net, s, *more):
        z = latents(net, s, more[-1])
        return z.map(lambda x: jnp.where(z.frames()[:, None] >= 0, x, 0))

    def decode(net, z, key, noise, *_):
        return net.play(z, key, noise)

    def model(net, s, key, noise, analysis, codebooks):
        z = latents(net, s, codebooks)
        return net.play(z if analysis is None else z.map(lambda x: _crop(analysis, x)), key, noise)

    def stream(method, sound_in, sound_out):
        wide, block, turn = (samples, frames, TURN) if sound_in else (latent, 1, TURN // frames)
        back = turn // 2 // (2 * frames) * 2 * frames  # even, as the signs of the odd bands are, and a multiple of all strides
        # As shapes, so that a stream which is built in a trace outlives it
        example = jax.eval_shape(lambda: (_key(jnp.zeros(2, jnp.uint32)), jnp.float32(0.0) if net.amplitudes else None, None))
        example = *example, codebooks

        def start(batch: int = 1, key=(0, 0), first: int = 0):
            state = streaming.start(net, abstract, wide, batch, block, *example, method=method)
            return {**state, "position": jnp.int32(first * block), "key": jnp.asarray(key, jnp.uint32)}

        def step(params, variables, state, x):
            noise = variables["decoder"]["noise"] if net.amplitudes else None
            more = _key(state["key"]), noise, variables.get("analysis"), variables.get("quantizer")
            x = rave.frames_of(x, net.bands) if sound_in else x
            new, made = streaming.step(net, stored(params, variables), state, x, *more, method=method)
            position = jnp.where(new["position"] < turn, new["position"], new["position"] - back)
            return {**new, "position": position, "key": state["key"]}, rave.samples_of(made.x, net.channels) if sound_out else made.x

        delay = streaming.delay(net, abstract, wide, block, *example, method=method)
        return Stream(start, step, delay * net.bands if sound_out else delay)

    whole = stream(model, True, True)
    latency = whole.delay + pqmf.bank(net.bands, net.attenuation_db, net.causal).delay
    return Live(whole, stream(encode, True, False), stream(decode, False, True), net.bands * frames, latency)


def check_block(live: Live, block: int) -> None:
    """Raises UserError for a block that is no multiple of the hop."""
    if block % live.hop:
        nearest = max(1, round(block / live.hop)) * live.hop
        raise UserError(f"a block of {block} samples is no multiple of the model's hop of {live.hop}: give {nearest}.")


def stored(params, variables):
    """What `Rave.apply` takes, of the players' params and variables."""
    return {"params": {player: params[player] for player in ("encoder", "decoder")}, "batch_stats": {"encoder": variables["encoder"]}}


def directions(analysis: fidelity.Analysis, r: int) -> dict:
    """What goes into variables for latents cut to their first r directions, see `live`."""
    return {"analysis": {"mean": jnp.float32(analysis.mean), "components": jnp.float32(analysis.components), "directions": jnp.int32(r)}}


def _key(numbers):
    return jax.random.wrap_key_data(numbers, impl="threefry2x32")


def _crop(analysis, z):
    return fidelity.crop(fidelity.Analysis(analysis["mean"], analysis["components"], None, None), z, analysis["directions"])
