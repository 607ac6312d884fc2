"""Grey MNIST with a 2-D code (rows M1-M4), its dense, convolutional and LSTM families (M6), and the plain autoencoders of A3.

    python -m vae_jax train --config=experiments/mnist.py --workdir=runs/mnist
    python -m vae_jax train --config=experiments/mnist.py:conv --workdir=runs/mnist_conv

Data: python -m data_prep.images --source=FOLDER --out=datasets/mnist   (the four IDX files, .gz or not)
      with --per_class=1600,400 into datasets/mnist_m1 for `m1`, the subset sizes of row M1
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import vae

FAMILIES = {
    "dense": dict(family="dense", hidden=(512, 512), activation="gelu"),
    "conv": dict(family="conv", hidden=(32, 64), activation="gelu"),
    "lstm": dict(family="lstm", hidden=(256,), activation="tanh"),
}


def get_config(variant: str = "dense") -> Config:
    """m1; dense, conv, lstm: M6's three families, 16-D, one recipe; ae2, ae8, ae32: A3's plain autoencoders."""
    config = Config(
        name=f"mnist-{variant}",
        data=Data(dir="datasets/mnist", train="train[:50000]", validation="train[50000:]", batch=128),
        optim=Optim(lr=1e-3, schedule="cosine", warmup_steps=200),
        eval=Eval(every=1000),
        run=Run(steps=10000, log_every=100, save_every=2000),
    )
    if variant == "m1":
        config.data = Data(dir="datasets/mnist_m1", batch=128)
        config.model = vae.Model(**FAMILIES["dense"], latent=2)
        config.eval = Eval(every=125)  # an epoch
        config.run.steps, config.targets = 7500, (Target("eval/test/loss", 155.0, "<=", source="student paper, figure 4: test total loss"),)
    elif variant in FAMILIES:
        config.model = vae.Model(**FAMILIES[variant], latent=16)
        config.run.steps = 4000
    elif variant in ("ae2", "ae8", "ae32"):
        config.model = vae.Model(**FAMILIES["dense"], latent=int(variant[2:]), likelihood="gaussian", sigma=0.1, variational=False)
    else:
        raise UserError(f"experiments/mnist.py has no variant {variant!r}; it has m1, dense, conv, lstm, ae2, ae8, ae32.")
    return config
