"""Music as piano rolls: the published shape (rows M8 and M4-midi), four families on one recipe (M6-midi), two bars rebuilt without teacher, sixteen
under a conductor, posterior collapse and its cures (M5-midi), genres (M9).

    python -m vae_jax reproduce --config=experiments/midi.py:two_bars --workdir=runs/two_bars
    python -m vae_jax train --config=experiments/midi.py:hierarchical --workdir=runs/midi_hierarchical

Data: python -m data_prep.midi --source=bach_chorales.zip --out=datasets/chorales --transpose=-5:6 --split=train:0.8,validation:0.1,test:0.1
      with --steps=100 --low=24 --high=101 into datasets/chorales_100 for `paper`, with --steps=256 --hop=64 into datasets/chorales_16bars for
      `sixteen_bars`; for `genres`, of a folder that has a folder of MIDI files a genre (chorales, openttd, simutrans):
      python -m data_prep.midi --source=games --out=datasets/games --fold --transpose=-5:6 --split=train:0.8,validation:0.1,test:0.1
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import vae

FAMILIES = {"dense": dict(hidden=(512, 256), activation="gelu"), "conv": dict(family="conv", hidden=(32, 64, 128), activation="gelu"),
            "lstm": dict(family="lstm", hidden=(256,)), "hierarchical": dict(family="hierarchical", hidden=(192,))}
FAMILIES = {name: settings | dict(shortcut=True) for name, settings in FAMILIES.items()}  # without: the ledger's row M6-midi
# A Gaussian with a mean and covariance of its own in place of N(0, I): two bars cost 15 nats less
WIDE = dict(prior="mixture", components=1, covariance="full")
# An LSTM that reads the row before, and the lower notes of its own, can do without the code
COLLAPSE = {"plain": {}, "annealed": dict(warmup="sigmoid", warmup_steps=2000), "free_bits": dict(free_bits_example=16.0)}
OTHERS = ("paper", "two_bars", "sixteen_bars", "genres")


def get_config(variant: str = "two_bars") -> Config:
    config = Config(
        name=f"midi-{variant}", data=Data(dir="datasets/chorales", validation="validation", batch=64),
        optim=Optim(lr=1e-3, schedule="cosine", warmup_steps=200, clip=100.0),
        eval=Eval(every=250, batch=100, examples=2000), run=Run(steps=5000, log_every=100, save_every=1000),
    )
    if variant in FAMILIES:
        config.model = vae.Model(**FAMILIES[variant], latent=64)
    elif variant in COLLAPSE:
        config.model = vae.Model(family="lstm", hidden=(256,), latent=32, autoregressive=True, **COLLAPSE[variant])
        config.run.steps, config.eval.every, config.eval.examples = 3000, 500, 500
    elif variant == "paper":  # 15,600-1000-500-100-20, there with ReLU in the encoder and Adam at 1e-5
        config.model = vae.Model(hidden=(1000, 500, 100), latent=20)
        config.data.dir = "datasets/chorales_100"
        config.targets = (Target("eval/test/rebuilt_density", 1.0, "+-", 0.1, "row M8: density of notes at the threshold chosen on validation"),)
    elif variant == "two_bars":
        config.model = vae.Model(**FAMILIES["conv"], latent=256, **WIDE)
        config.optim.ema = 0.999
        config.targets = (Target("eval/test/held_f1", 0.95, ">=", source="ours; MusicVAE reports an accuracy of 0.951 for two-bar melodies"),
                          Target("eval/test/onset_f1", 0.90, ">=", source="ours"),
                          Target("eval/test/rebuilt_density", 1.0, "+-", 0.1, "ours"))
    elif variant == "sixteen_bars":
        config.model = vae.Model(family="hierarchical", hidden=(256,), latent=512, shortcut=True, **WIDE)
        config.data.dir, config.data.batch = "datasets/chorales_16bars", 32
        config.optim.ema, config.eval.every = 0.999, 1000
    elif variant == "genres":
        config.model = vae.Model(**FAMILIES["conv"], latent=64, condition="label")
        config.data.dir = "datasets/games"
    else:
        raise UserError(f"experiments/midi.py has no variant {variant!r}; it has {', '.join((*OTHERS, *FAMILIES, *COLLAPSE))}.")
    return config
