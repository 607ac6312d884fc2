"""The settings of RAVE: `Model`, which of them go together, and what of a crop is trained on."""

import dataclasses
import math

from vae_jax.config import Config, Optim, UserError, at_least
from vae_jax.dsp import augment as augmentation
from vae_jax.dsp import pqmf
from vae_jax.losses import adversarial, quantization, spectral

ADVERSARIES = {"hinge": (adversarial.hinge_critic, adversarial.hinge_generator),
               "least_squares": (adversarial.least_squares_critic, adversarial.least_squares_generator)}
LATENTS = ("variational", "wasserstein", "spherical", "discrete")


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


def quantizer(m: Model) -> quantization.Quantizer:
    """Of discrete latents. Raises UserError for settings that do not go together."""
    return quantization.get("ema", m.codes, m.latent, 1, m.levels, m.decay, m.restart, m.kmeans)


def check(config: Config, spec) -> None:
    """Raises UserError for settings that do not fit together or the data."""
    m = config.model
    if "audio" not in spec.fields:
        raise UserError(f"RAVE is for sound, but the data set {spec.name} holds {', '.join(spec.fields)}; prepare it with data_prep.waveforms.")
    for name, choices in {"version": (1, 2), "latents": LATENTS, "distance": spectral.DEFINITIONS, "adversarial": tuple(ADVERSARIES),
                          "matching": adversarial.DEFINITIONS}.items():
        if getattr(m, name) not in choices:
            raise UserError(f"config.model.{name}={getattr(m, name)!r} is not one of {', '.join(map(str, choices))}.")
    at_least(m, {"capacity": 1, "latent": 1, "bands": 1, "representation_steps": 0, "critic_every": 2, "critic_capacity": 1, "critic_scales": 0,
                 "noise_hidden": 1, "extra": 0, "codes": 2, "levels": 1, "restart": 0, "kmeans": 0, "beta": 0, "beta_steps": 0,
                 "adversarial_weight": 0, "matching_weight": 0, "high_hz": 0})
    if not m.epsilon > 0:
        raise UserError(f"config.model.epsilon={m.epsilon} must be above 0: silence has no logarithm.")
    quantizer(m)
    several = {"ratios": (2, "one to four", range(1, 5)), "windows": (4, "at least one", range(1, 100)),
               "noise_ratios": (1, "at least one", range(1, 100)),
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
        raise UserError(f"config.model: amplitudes={m.amplitudes} must be 0 or at least 2, and the product of ratios={m.ratios} a multiple of that "
                        f"of noise_ratios={m.noise_ratios}.")
    augmentation.check(m.augment, spec.facts["rate"])
    crop, late = config.data.crop, pqmf.bank(m.bands, m.attenuation_db, m.causal).delay
    shortest = max(max(m.windows) // 2 * m.bands, max(m.windows) // 2 + late) + 1
    if crop % hop or trained_crop(config) < shortest:
        raise UserError(f"config.data.crop={crop} samples must be a multiple of the hop {hop} and so long that at least {shortest} are trained on: "
                        f"set --config.data.crop={-(-augmentation.source_samples(m.augment, max(crop, shortest)) // hop) * hop}.")
    if m.beta_steps and not 0 < m.beta_from:
        raise UserError(f"config.model.beta_steps={m.beta_steps} lets beta rise from beta_from={m.beta_from}, which must be above 0: 1e-6, say.")


def trained_crop(config: Config) -> int:
    """Samples of a crop that are trained on: fewer than it holds where a raised pitch would use up more."""
    m = config.model
    hop, crop = m.bands * math.prod(m.ratios), config.data.crop
    while crop > 0 and augmentation.source_samples(m.augment, crop) > config.data.crop:
        crop -= hop
    return crop
