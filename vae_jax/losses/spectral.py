"""Multi-scale spectral distances of waves, in the published definition and in one made from it. Ratios and logarithms, not nats; float32.

Magnitudes are those of the plain STFT sum (a full-scale sine reads a quarter of the window), Hann windows, hop a quarter of them, the signal
mirrored at its ends. `squared` is what RAVE's public code since 2.0 minimises, `frobenius` the paper's equation 5 (Caillon and Esling 2021,
arXiv:2111.05011) made finite: there the logarithm of a difference falls without bound as the two agree.
"""

import functools
import math

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.dsp import stft

WINDOWS = (2048, 1024, 512, 256, 128)  # samples
DEFINITIONS = ("squared", "frobenius")
SILENCE = 1e-4  # mean squared magnitude below which a target counts as that loud: noise 60 to 70 dB below full scale
HEARD = 1e-3  # added to magnitudes where clips are evaluated: four times the noise of 16 bits, so that digital silence is no worse than that
EQUAL = 1e-2  # frobenius: mean difference from which on its logarithm counts


def magnitude(x_bt, window: int):
    """|STFT| [b, 1 + 4 t // window, window // 2 + 1]. Raises UserError for a signal too short to be mirrored by half a window."""
    half, hop = window // 2, window // 4
    if x_bt.shape[-1] <= half:
        raise UserError(f"a spectral window of {window} samples needs a signal of more than {half}, but has {x_bt.shape[-1]}: take longer crops.")
    mirrored = jnp.pad(x_bt, ((0, 0), (half, half)), mode="reflect")
    frames = stft.frame(mirrored, window, hop, 1 + x_bt.shape[-1] // hop)
    return stft.magnitude(stft.rfft(frames * jnp.float32(stft.hann(window, window, hop))))


def in_sound(valid, count: int, hop: int):
    """bool [b, count, 1]: which of `count` steps of hop samples begin in the first `valid` [b] samples, a crop's real ones; the first always does."""
    return (jnp.arange(count) * hop < jnp.maximum(valid, 1)[:, None])[..., None]


def real_frames(magnitudes, window: int, valid):
    """The same of the frames of magnitudes [b, n, k], by their middle: the last one of a whole crop has it at the end. None where valid is None."""
    return None if valid is None else in_sound(valid + 1, magnitudes.shape[1], window // 4)


def distance(target_bt, made_bt, definition: str = "squared", windows=WINDOWS, epsilon: float = 1e-7, each: bool = False, valid=None):
    """Spectral distance of `made` from `target`, both [b, t], summed over windows; 0 where they are equal.

    squared: mean (S - Z)^2 / mean S^2 + mean |log(S + epsilon) - log(Z + epsilon)|;
    frobenius: |S - Z|_F / |S|_F + log(1 + mean |S - Z| / EQUAL); S, Z the magnitudes of target and made.
    Means are over the whole batch, as published, so loud examples count more; each=True: of every example on its own, [b]. valid: int [b], where
    only so many samples of the target are real; frames whose middle lies behind them count for nothing.
    """
    _check(definition)
    axes, copies = (1, 2) if each else None, _copies(made_bt, len(windows))
    return sum(_apart(magnitude(target_bt, window), magnitude(made, window), window, definition, epsilon, axes, valid)
               for window, made in zip(windows, copies))


def from_spectra(target_bt, spectra: dict, definition: str, valid):
    """Distance [b] of each example of `target` from one spectrum for all of its frames, {window: magnitudes [window // 2 + 1]}; see `distance`.

    With the mean spectrum of other sounds: what a model would reach that knows how such sounds are coloured and hears nothing.
    """
    _check(definition)
    return sum(_apart(magnitude(target_bt, window), spectrum[None, None], window, definition, HEARD, (1, 2), valid)
               for window, spectrum in spectra.items())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copies(x, count):
    """x, `count` times. The slopes are added by a matrix product: XLA would fuse a plain sum into each of its users, which then add them up again."""
    return (x,) * count


_copies.defvjp(lambda x, count: ((x,) * count, None),
               lambda count, _, slopes: (jnp.dot(jnp.ones(count), jnp.stack(slopes).reshape(count, -1)).reshape(slopes[0].shape),))


def _check(definition):
    if definition not in DEFINITIONS:
        raise UserError(f"spectral distance {definition!r} is not known; choose one of {', '.join(DEFINITIONS)}.")


def _apart(s, z, window, definition, epsilon, axes, valid):
    """One window's part of the distance of magnitudes z from s."""
    mean = functools.partial(jnp.mean, axis=axes, where=real_frames(s, window, valid))
    ratio = mean(jnp.square(s - z)) / jnp.maximum(mean(jnp.square(s)), SILENCE)
    if definition == "squared":
        return ratio + mean(jnp.abs(jnp.log((s + epsilon) / (z + epsilon))))
    # The offset gives the root a gradient where the two are equal
    return jnp.sqrt(ratio + 1e-12) - 1e-6 + jnp.log1p(mean(jnp.abs(s - z)) / EQUAL)


def error_db(target_bt, made_bt, rate: int, low_hz: float = 0.0, window: int = 2048, floor_db: float = -80.0, valid=None):
    """Root mean squared difference in dB [b] of the two spectrograms' levels at and above low_hz. What is further down than floor_db, 0 being a sine
    at full scale, counts as that; valid: see `distance`."""
    first = math.ceil(low_hz * window / rate)
    if first > window // 2:
        raise UserError(f"an error above {low_hz:g} Hz cannot be measured at {rate} samples a second: take at most {rate // 2} Hz.")
    level = lambda x: stft.to_db(magnitude(x, window)[..., first:] / stft.full_scale(window), floor_db)
    apart = level(target_bt) - level(made_bt)
    return jnp.sqrt(jnp.mean(jnp.square(apart), (1, 2), where=real_frames(apart, window, valid)))


def aligned(target_btc, made_btc, delay: int):
    """Both without the samples for which `made` is `delay` late."""
    return target_btc[:, :target_btc.shape[1] - delay], made_btc[:, delay:]


def rows(x_btc):
    """[b * c, t]: every channel as a signal of its own."""
    return x_btc.swapaxes(1, 2).reshape(-1, x_btc.shape[1])


def of_clips(target_btc, made_btc, rate: int, delay: int, definition: str, windows, high_hz: float, valid=None) -> dict:
    """{'distance', 'error_db', 'high_error_db' (above high_hz)}: each [b], the mean over channels; made is `delay` samples late, which are left out.

    What is below the noise of 16 bits counts for nothing, see HEARD, nor what is behind the `valid` [b] samples of a short recording, see `distance`.
    """
    target, made = (rows(x) for x in aligned(target_btc, made_btc, delay))
    longest, valid = max(windows), None if valid is None else jnp.repeat(valid, target_btc.shape[2])
    found = {"distance": distance(target, made, definition, windows, HEARD, each=True, valid=valid),
             "error_db": error_db(target, made, rate, 0.0, longest, valid=valid),
             "high_error_db": error_db(target, made, rate, high_hz, longest, valid=valid)}
    return {name: values.reshape(len(target_btc), -1).mean(1) for name, values in found.items()}
