"""The networks PyTorch users would run instead, shape for shape, for `bench` and for time to quality.

    python -m vae_jax bench --config=experiments/peers.py:mlp
    python -c 'from experiments import peers; peers.write_npz("spectrogram", "spectrogram.npz")'     the same pictures for the other side

Same batch, input size, strides, channels and latent size as the PyTorch side; Adam 1e-3, float32. (Of each LSTM PyTorch keeps a second bias, which
only ever adds to the first: 2,048 parameters more for `lstm`.) `rave_small` and `rave_v1` need
recordings as data_prep.waveforms writes them.
"""

import math

from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.dsp.augment import Augment
from vae_jax.tasks import rave, vae, vqvae, wave_vqvae

SIGMA = math.sqrt(0.5)  # -log p is then the plain sum of squared errors, plus N/2 log(pi)
BARE = dict(amplitudes=0, full_band=False, augment=Augment(allpass=0.0, dither=False))
VARIANTS = {
    "mlp": (vae.Model(hidden=(300, 300), latent=40, activation="tanh"), Data(dir="datasets/mnist", batch=100)),
    "conv28": (vae.Model(family="conv", hidden=(32, 64), latent=16, likelihood="gaussian", sigma=SIGMA), Data(dir="datasets/mnist32", batch=128)),
    "spectrogram": (vae.Model(family="conv", hidden=(32, 64, 128, 128), latent=128, likelihood="gaussian", sigma=SIGMA),
                    Data(dir="datasets/fsdd_faithful", batch=64)),
    # The published network, its codebook learned by a loss
    "vqvae32": (vqvae.Model(quantizer="loss"), Data(dir="datasets/cifar10", batch=32)),
    "wavenet": (wave_vqvae.Model(cycles=5, residual=32, gate=32, skip=512), Data(dir="datasets/fsdd", crop=2048, batch=8)),  # for --generate
    # Stage 1 on 4,096 frames of 16 sub-bands, without the distance of the wave and without augmentation
    "rave_small": (rave.Model(capacity=16, **BARE), Data(dir="datasets/recordings", crop=65_536, batch=8)),
    "rave_v1": (rave.Model(capacity=64, **BARE), Data(dir="datasets/recordings", crop=65_536, batch=4)),
    "lstm": (vae.Model(family="lstm", hidden=(256,), latent=20), Data(dir="datasets/chorales_100", batch=64)),  # 100 rows of 156 columns
    "bottles": (vae.Model(family="conv", hidden=(32, 64, 64), latent=2, likelihood="gaussian", sigma=SIGMA), Data(dir="datasets/bottles", batch=32)),
}


def get_config(variant: str = "mlp") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/peers.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    model, data = VARIANTS[variant]
    task = {rave.Model: "rave", vqvae.Model: "vqvae", wave_vqvae.Model: "wave_vqvae"}.get(type(model), "vae")
    return Config(name=f"peers-{variant}", task=task, model=model, data=data, optim=Optim(lr=1e-3),
                  eval=Eval(every=500, roles=("test",), batch=data.batch if task == "rave" else 500),
                  run=Run(steps=5000, log_every=100, save_every=5000))


def write_npz(variant: str, path: str) -> None:
    """The pictures that a variant sees, `train` and `test` [n, h, w]: stored uint8 ones as they are, spectrograms as floats in 0..1; rolls, whose
    columns are their width, as floats too."""
    import jax
    import numpy as np

    from vae_jax import data, fronts, records

    config = get_config(variant)
    front = fronts.get(records.open_folder(config.data.dir), config.model.sound, 2 ** len(config.model.hidden))
    analyse, found = jax.jit(front.analyse), {}
    for role in ("train", "test"):
        source = data.Source(config.data.dir, role)
        parts = [source.read(np.arange(i, min(i + 100, len(source)))) for i in range(0, len(source), 100)]
        if front.kind == "roll":
            found[role] = np.concatenate([rows["roll"] / np.float32(255) for rows in parts])
        else:
            found[role] = np.concatenate([rows["image"] if front.kind == "image" else analyse({"audio": rows["audio"]}) for rows in parts])[..., 0]
    np.savez(path, **found)
