"""Judges of generated pictures, spoken digits, music and piano rolls, trained on real data only; and who speaks. `voices` and `bands` hear half a
second of what RAVE makes at 16 and at 44.1 kHz: prepare FOLDERs of two voices, of genres, with data_prep.waveforms.

    python -m vae_jax train --config=experiments/judge.py --workdir=runs/judge
    python -m vae_jax train --config=experiments/judge.py:fsdd --workdir=runs/judge_fsdd
"""

from vae_jax import fronts
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.tasks import classifier

SPEECH = fronts.Sound(n_fft=256, hop=128)
VARIANTS = {
    "mnist": (classifier.Model(), Data(dir="datasets/mnist", train="train[:55000]", validation="train[55000:]", batch=128)),
    "cifar10": (classifier.Model(channels=(64, 128, 256)), Data(dir="datasets/cifar10", batch=128)),
    "fsdd": (classifier.Model(channels=(32, 64, 64), sound=SPEECH), Data(dir="datasets/fsdd", batch=64)),
    "speaker": (classifier.Model(channels=(32, 64, 64), sound=SPEECH, label="speaker"), Data(dir="datasets/fsdd", batch=64)),
    "genres": (classifier.Model(channels=(32, 64, 64)), Data(dir="datasets/genres", validation="validation", batch=64)),
    "voices": (classifier.Model(channels=(16, 32, 32), hidden=32), Data(dir="datasets/voices", crop=8192, batch=64)),
    "rolls": (classifier.Model(channels=(32, 64, 64)), Data(dir="datasets/games", validation="validation", batch=64)),  # genres: data of midi.py
    "bands": (classifier.Model(channels=(16, 32, 32), hidden=32, sound=fronts.Sound(n_fft=1024, hop=512)),
              Data(dir="datasets/bands", crop=22528, batch=64)),
}
STEPS = {"mnist": 3000, "cifar10": 3000, "fsdd": 1200, "speaker": 600, "genres": 800, "voices": 600, "bands": 600, "rolls": 800}


def get_config(variant: str = "mnist") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/judge.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    model, data = VARIANTS[variant]
    steps = STEPS[variant]
    return Config(
        name="judge" if variant == "mnist" else f"judge-{variant}", task="classifier", model=model, data=data,
        optim=Optim(lr=1e-3, schedule="cosine", weight_decay=0.0 if variant == "mnist" else 0.1),
        eval=Eval(every=steps // 6, roles=("validation", "test") if data.validation else ("test",)),
        run=Run(steps=steps, log_every=100, save_every=steps // 3),
    )
