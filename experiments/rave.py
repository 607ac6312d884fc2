"""RAVE on one's own recordings: the published sizes, causal forms, and a small one for a laptop (rows R1-R9).

    python -m vae_jax train --config=experiments/rave.py:small --workdir=runs/rave
    python -m vae_jax train --config=experiments/rave.py:v2 --workdir=runs/strings --config.data.dir=datasets/strings --config.model.causal

Data: python -m data_prep.waveforms --source=FOLDER --out=datasets/recordings --rate=48000

v1, v2, v2_small, raspberry, wasserstein, spherical and discrete have the sizes of the paper's network (arXiv:2111.05011) and of later public ones,
with the losses, lengths and rates of the public code 2.x; the paper's distance is --config.model.distance=frobenius. Their KL weight of 0.1 without
the half is 0.2 here, feature matching is weighed as it is written there. --config.model.causal is for live use: late by 361 samples and the block,
where the others are by half a second.
Stage 1 lasts config.model.representation_steps; its end stays in WORKDIR/end_representation. Whether stage 2 did good is told by two measures that no
trained critic computes: eval/test/high_error_db (above 4 kHz), and judge/frechet of `evaluate --judge=runs/judge_voices` (experiments/judge.py).
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import rave

ADAM = dict(b1=0.5, b2=0.9)
LEARNED = (Target("eval/test/distance_ratio", 0.6, "<=", 0.0, "held-out spectral distance over that of the better of silence and mean spectrum"),)
V2 = dict(version=2, capacity=96, amplitudes=0, beta=0.1, beta_from=2e-6, beta_steps=20_000, critic_every=4, critic_periods=(2, 3, 5, 7, 11),
          critic_capacity=96, adversarial_weight=8.0, matching="relative", matching_weight=20.0)
SHORT = dict(beta_from=0.0, beta_steps=0, representation_steps=200_000)
VARIANTS = {
    "v1": dict(),
    "v2": V2,
    "v2_small": V2 | dict(capacity=48, critic_capacity=48, ratios=(4, 2, 2, 2), amplitudes=32, noise_ratios=(2, 2, 2), beta=0.02, beta_from=0.0,
                          beta_steps=0, critic_every=2),
    "raspberry": dict(capacity=16, critic_capacity=16, amplitudes=0),
    # Other latents for v2. The public code weighs the kernel distance by 100 where the spectral distances weigh 2: halved throughout
    "wasserstein": V2 | dict(latents="wasserstein", latent=16, extra=128, beta=50.0, matching_weight=10.0, **SHORT),
    "spherical": V2 | dict(latents="spherical", latent=16, beta=0.0, **SHORT),
    # The public code begins codes anew below 2 frames a batch. Its batch has 1 a code, so all but the commonest would always be new: below 0.1 here
    "discrete": V2 | dict(latents="discrete", ratios=(4, 4, 2, 2), extra=128, beta=0.1, epsilon=1.0, **SHORT),
    # Through both stages in 20 to 40 minutes on two cores. In so few steps critics do more harm than good: their weights are small
    "small": dict(capacity=16, critic_capacity=16, ratios=(4, 2, 2, 2), noise_ratios=(4, 4, 2), beta=0.02, representation_steps=5_000,
                  adversarial_weight=0.1, matching_weight=0.3),
}


def get_config(variant: str = "small") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/rave.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    model, small = rave.Model(**VARIANTS[variant]), variant == "small"
    steps = model.representation_steps
    return Config(
        name=f"rave-{variant}", task="rave", model=model,
        data=Data(dir="datasets/recordings", crop=32_768 if small else 131_072, batch=8),
        optim=Optim(lr=1e-3, schedule="linear", factor=0.1, decay_steps=steps, **ADAM),
        eval=Eval(every=1000 if small else 10_000, batch=8, examples=64),
        run=Run(steps=steps * 13 // 10 if small else 3 * steps, log_every=50 if small else 100, save_every=500 if small else 10_000),
        targets=LEARNED if small else (),
    )
