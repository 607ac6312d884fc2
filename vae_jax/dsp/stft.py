"""Short-time Fourier transform and its inverse, mel bands and decibels, in float32, traceable by jit on any device.

Time major: signals [..., t], spectra [..., frame, bin] (suffix _btf), leading axes free. Frame i is centred on sample i * hop, and the signal is
zero outside its t samples, so there are 1 + t // hop frames and n_fft // 2 + 1 bins, the last being the Nyquist frequency. The window is the
periodic Hann, centred in n_fft where it is shorter. Values are those of the plain sum x w exp(-2 pi i k n / n_fft): see `full_scale` for levels.

`form` picks how a frame is transformed: 'rfft', the FFT, the faster one on CPU and GPU; 'matmul', two half-size matrix products, for TPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from vae_jax.config import UserError

_EXACT = lax.Precision.HIGHEST  # accelerators round the factors of a product to 8 or 11 bits otherwise


def stft(x_bt, n_fft: int, hop: int, window_length: int | None = None, form: str = "rfft"):
    """Spectrum complex64 [..., 1 + t // hop, n_fft // 2 + 1] of real signals [..., t], t >= 1.

    window_length: samples, n_fft if None. Raises UserError for an odd n_fft, a window longer than n_fft, an empty signal or an unknown form.
    """
    window = hann(window_length, n_fft, hop)
    x_bt = jnp.asarray(x_bt, jnp.float32)
    if not x_bt.shape[-1]:
        raise UserError("The STFT of a signal without samples was asked for; leave empty clips out.")
    frames = frame(x_bt, n_fft, hop, 1 + x_bt.shape[-1] // hop, before=n_fft // 2)
    return _choose(form, rfft, _rfft_by_products)(frames * jnp.float32(window))


def istft(spectrum_btf, hop: int, length: int, window_length: int | None = None, form: str = "rfft", least: float = 0.0):
    """Signal [..., length] whose STFT is nearest to a spectrum [..., frames, n_fft // 2 + 1] in squared error.

    Windowed overlap-add divided by the sum of squared windows (Griffin and Lim 1984, equation 6); samples that no window reaches are 0.
    least: smallest divisor, as a share of its largest. 0 is the exact inverse. At half overlap the last samples may lie under one window's tail
    alone, where the divisor falls to 1e-9: there the exact inverse of an altered spectrum is a click. Raises UserError as `stft` does.
    """
    n_fft = 2 * (spectrum_btf.shape[-1] - 1)
    window, count = hann(window_length, n_fft, hop), spectrum_btf.shape[-2]
    if length < 1 or count < 1:
        raise UserError(f"The inverse STFT of {count} frames to {length} samples was asked for; both must be at least 1.")
    frames = _choose(form, _irfft, _irfft_by_products)(jnp.asarray(spectrum_btf, jnp.complex64))
    start = n_fft // 2
    total = overlap_add(frames * jnp.float32(window), hop)[..., start : start + length]
    divisor = overlap_add(np.broadcast_to(window**2, (count, n_fft)), hop, np)[start : start + length]
    divisor = np.maximum(divisor, least * divisor.max(initial=0.0))
    reached = divisor > np.finfo(np.float32).tiny
    total = total * np.float32(np.where(reached, 1.0 / np.where(reached, divisor, 1.0), 0.0))
    return jnp.pad(total, [(0, 0)] * (total.ndim - 1) + [(0, length - total.shape[-1])])


def hann(window_length: int | None, n_fft: int, hop: int) -> np.ndarray:
    """Periodic Hann window centred among n_fft zeros, float64 [n_fft]. Raises UserError for sizes that make no transform."""
    length = n_fft if window_length is None else window_length
    if n_fft < 2 or n_fft % 2 or hop < 1 or not 2 <= length <= n_fft:
        raise UserError(
            f"An STFT with n_fft={n_fft}, hop={hop}, window_length={length} cannot be made: n_fft must be even, hop at least 1, "
            "and the window between 2 and n_fft samples."
        )
    before = (n_fft - length) // 2
    return np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length), (before, n_fft - length - before))


def frame(x_bt, size: int, hop: int, count: int, before: int = 0):
    """Overlapping frames [..., count, size]: frame i begins at sample i * hop of the signal with `before` zeros in front and zeros behind."""
    pieces = -(-size // hop)
    total = (count + pieces - 1) * hop
    lead = [(0, 0)] * (x_bt.ndim - 1)
    x_bt = jnp.pad(x_bt, [*lead, (before, max(0, total - before - x_bt.shape[-1]))])[..., :total]
    blocks = x_bt.reshape(*x_bt.shape[:-1], -1, hop)  # slices of hop-sized blocks: a gather of samples is many times slower
    return jnp.concatenate([blocks[..., i : i + count, :] for i in range(pieces)], -1)[..., :size]


def overlap_add(frames_btn, hop: int, numpy=jnp):
    """Sum [..., (count - 1) * hop + at least size] of frames [..., count, size], frame i added from sample i * hop on; zeros behind.

    numpy: the module to compute with; numpy itself gives a constant.
    """
    size = frames_btn.shape[-1]
    pieces = -(-size // hop)
    lead = [(0, 0)] * (frames_btn.ndim - 2)
    blocks = numpy.pad(frames_btn, [*lead, (0, 0), (0, pieces * hop - size)]).reshape(*frames_btn.shape[:-1], pieces, hop)
    total = sum(numpy.pad(blocks[..., i, :], [*lead, (i, pieces - 1 - i), (0, 0)]) for i in range(pieces))
    return total.reshape(*total.shape[:-2], -1)


def _choose(form, by_fft, by_products):
    if form not in ("rfft", "matmul"):
        raise UserError(f"STFT form {form!r} is not known; choose 'rfft' or 'matmul'.")
    return by_fft if form == "rfft" else by_products


def _of_rows(transform):
    """`transform` of the last axis, which devices that share out the others do each for their own part: XLA would gather all rows on every device."""
    def split(mesh, arguments, result):
        rows = [NamedSharding(mesh, PartitionSpec(*a.sharding.spec[:a.ndim - 1])) for a in (*arguments, result)]
        return mesh, lambda x: transform(x), rows[-1], tuple(rows[:-1])

    shared = custom_partitioning(lambda x: transform(x))
    shared.def_partition(split, sharding_rule="... i -> ... j")
    return lambda x: shared(x) if jax.device_count() > 1 else transform(x)


_forward, _backward = _of_rows(jnp.fft.rfft), _of_rows(jnp.fft.irfft)


@jax.custom_vjp
def rfft(x):
    """Real DFT of the last axis, complex64 [..., n // 2 + 1], n even; its gradient is one inverse real DFT, where jnp.fft's is a complex one of n."""
    return _forward(x)


def _rfft_backward(_, slope):
    # Without halves each frequency but the first and the last would count twice
    half = np.full(slope.shape[-1], 0.5, np.float32)
    half[[0, -1]] = 1.0
    return ((2 * (slope.shape[-1] - 1)) * _irfft(jnp.conj(slope) * half),)


rfft.defvjp(lambda x: (rfft(x), None), _rfft_backward)


def _irfft(spectrum):
    inner = np.ones(spectrum.shape[-1], np.float32)
    inner[[0, -1]] = 0.0  # libraries differ in what they make of an imaginary part at 0 or at Nyquist, where a real signal has none
    return _backward(lax.complex(spectrum.real, spectrum.imag * inner))


def _rfft_by_products(x):
    """Real DFT of even length n by the mirror halves: cosines see only x[j] + x[n - j], sines only x[j] - x[n - j]."""
    half = x.shape[-1] // 2
    cosines, sines = _tables(half)
    first, mirrored = x[..., 1:half], x[..., :half:-1]
    even = jnp.concatenate([x[..., :1], first + mirrored, x[..., half : half + 1]], -1)
    imaginary = jnp.dot(mirrored - first, np.float32(sines), precision=_EXACT)
    return lax.complex(jnp.dot(even, np.float32(cosines), precision=_EXACT), _between_zeros(imaginary))


def _irfft_by_products(spectrum):
    half = spectrum.shape[-1] - 1
    cosines, sines = _tables(half)
    twice = np.full((half + 1, 1), 1.0 / half)
    twice[[0, -1]] = 0.5 / half
    even = jnp.dot(spectrum.real, np.float32(twice * cosines), precision=_EXACT)
    odd = jnp.dot(-spectrum.imag[..., 1:-1], np.float32(sines / half), precision=_EXACT)
    middle = even[..., 1:-1]
    return jnp.concatenate([even[..., :1], middle + odd, even[..., -1:], (middle - odd)[..., ::-1]], -1)


def _tables(half):
    """Cosines [half + 1, half + 1] and sines [half - 1, half - 1] (without their zero rows) of pi j k / half."""
    j = np.arange(half + 1)
    angles = np.pi / half * (np.outer(j, j) % (2 * half))
    return np.cos(angles), np.sin(angles[1:-1, 1:-1])


def _between_zeros(x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)])


def magnitude(spectrum):
    """|spectrum|, float32, with a gradient that is 0 at silence. Adds 1e-10 there (a full-scale sine reads about n_fft / 4)."""
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-20)


def full_scale(window_length: int) -> float:
    """Magnitude of a full-scale sine (amplitude 1) on a bin: half the sum of the Hann window.

    The project's levels are to_db(magnitude / full_scale(window_length), floor_db): such a sine reads 0 dB, one between two bins down to 1.42 dB
    less.
    """
    return window_length / 4


def to_db(amplitude, floor_db):
    """20 log10(amplitude), nowhere under floor_db (a number, or an array that broadcasts, such as each clip's peak less 80)."""
    return 20.0 * jnp.log10(jnp.maximum(amplitude, from_db(floor_db)))


def from_db(db):
    """Amplitude 10^(db / 20)."""
    return jnp.power(10.0, jnp.asarray(db, jnp.float32) / 20.0)


def mel_filters(rate: int, n_fft: int, bands: int, low: float, high: float) -> np.ndarray:
    """Triangular mel bands float32 [n_fft // 2 + 1, bands] between `low` and `high` Hz, each of area 1 in Hz.

    Slaney's Auditory Toolbox (1998): the scale is linear to 1 kHz, then logarithmic. Raises UserError for a range outside 0..rate / 2, and for
    bands so narrow that some hold no bin.
    """
    if not 0 <= low < high <= rate / 2:
        raise UserError(f"The mel range {low}..{high} Hz does not lie in 0..{rate / 2:g} Hz, half the sample rate; change low or high.")
    mels = np.linspace(_mel_of_hz(low), _mel_of_hz(high), bands + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    hz = np.linspace(0.0, rate / 2, n_fft // 2 + 1)[:, None]
    filters = np.maximum(0.0, np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre))) * 2.0 / (right - left)
    if empty := int((filters.max(0) == 0).sum()):
        raise UserError(f"{empty} of {bands} mel bands hold no frequency bin at n_fft={n_fft} and {rate} Hz; use fewer bands or a longer n_fft.")
    return np.float32(filters)


def _mel_of_hz(hz):
    return hz * 3.0 / 200.0 if hz < 1000.0 else 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4)


def mel(magnitude_btf, filters):
    """Mel magnitudes [..., frames, bands] of linear ones and `mel_filters`."""
    return jnp.dot(magnitude_btf, filters, precision=_EXACT)


def mel_inverse(mel_btm, filters, steps: int = 100):
    """Linear magnitudes [..., frames, bins], none negative, whose mel magnitudes are those given: least squares, each band in units of its norm.

    More bins than bands leave a choice; the start, every band spread over its bins, keeps the answer smooth in frequency. Accelerated projected
    gradient (Beck and Teboulle 2009, FISTA, section 4); its step is safe since no eigenvalue of a matrix exceeds its largest row sum.
    """
    norms = jnp.sqrt(jnp.sum(jnp.square(filters), 0))
    target, bases = mel_btm / norms, filters / norms
    rate = 1.0 / jnp.max(jnp.sum(mel(bases.T, bases), 0))
    start = mel(target / jnp.sum(bases, 0), bases.T) / jnp.maximum(jnp.sum(bases, 1), 1e-9)

    def step(_, carry):
        previous, ahead, t = carry
        found = jnp.maximum(ahead - rate * mel(mel(ahead, bases) - target, bases.T), 0.0)
        t_next = 0.5 + 0.5 * jnp.sqrt(1.0 + 4.0 * t * t)
        return found, found + (t - 1.0) / t_next * (found - previous), t_next

    return lax.fori_loop(0, steps, step, (start, start, jnp.float32(1.0)))[0]
