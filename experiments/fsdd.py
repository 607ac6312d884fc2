"""Spoken digits as spectrograms: a VAE with a standard and with mixture priors (rows S2-S5, S11, A11).

    python -m vae_jax train --config=experiments/fsdd.py --workdir=runs/fsdd
    python -m vae_jax train --config=experiments/fsdd.py:mixture --workdir=runs/fsdd_mixture --config.seed=1
    python -m vae_jax train --config=experiments/fsdd.py --workdir=runs/fsdd_beta4 --config.model.beta=4      and 16, 64: the sweep of S4

Data: python -m data_prep.speech --source=recordings.zip --out=datasets/fsdd --rate=8000 --seconds=0.74
      with --rate=22050 --out=datasets/fsdd_faithful for `faithful`; with --hold_out=SPEAKER --out=datasets/fsdd_SPEAKER, and
      --config.data.dir=datasets/fsdd_SPEAKER here, for a speaker who was never heard
"""

from vae_jax import fronts
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.tasks import vae

NATIVE = fronts.Sound(n_fft=256, hop=128)
VARIANTS = {
    "native": dict(sound=NATIVE),
    "mixture": dict(sound=NATIVE, prior="mixture", components=10, anneal_steps=2000),
    "full": dict(sound=NATIVE, prior="mixture", components=10, covariance="full", anneal_steps=2800),  # 2,000 left two unused
    "faithful": dict(sound=fronts.Sound(normalise="peak")),  # as the public notebooks see it: 256 x 64 pixels, each clip scaled by its own peak
}


def get_config(variant: str = "native") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/fsdd.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    # Small convolutions beside a linear path: four times the channels took twice the time and overfitted
    model = vae.Model(family="conv", hidden=(8, 16, 32, 64), latent=128, shortcut=True, likelihood="gaussian", squash=True, sigma=0.02,
                      **VARIANTS[variant])
    return Config(
        name=f"fsdd-{variant}", model=model,
        data=Data(dir="datasets/fsdd_faithful" if variant == "faithful" else "datasets/fsdd", batch=64),
        optim=Optim(lr=2e-3, schedule="cosine", warmup_steps=200, weight_decay=0.3, ema=0.999, clip=1000.0),
        eval=Eval(every=500, batch=100), run=Run(steps=3000, log_every=100, save_every=1000),
    )
