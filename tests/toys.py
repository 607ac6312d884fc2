"""The smallest tasks and data sets that exercise the engine, shared by its tests."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import records
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import Move, Task


def two_players(gate=None, every: int = 3) -> Task:
    """A 'gen' that fits a line through the batch and a 'dis' that fits its mean, updated every `every` steps; both keep a count."""

    def init(key, batch):
        counts = {p: {"count": jnp.zeros(())} for p in ("gen", "dis", "frozen")}
        return {"gen": {"kernel": jax.random.normal(key, (2, 2))}, "dis": {"bias": jnp.zeros(2)}, "frozen": {"bias": jnp.ones(2)}}, counts

    def count_all(variables):  # writes to every player's variables, of which an update may keep only its own
        return jax.tree.map(lambda c: c + 1, variables)

    def gen(params, variables, batch, key, step):
        x = batch["x"]
        loss = jnp.mean((x @ params["gen"]["kernel"] + params["frozen"]["bias"] - 2 * x) ** 2) + 0 * jnp.sum(params["dis"]["bias"])
        return loss, (count_all(variables), {"gen_loss": loss, "loss": loss})

    def dis(params, variables, batch, key, step):
        noise = 0.01 * jax.random.normal(key, (2,))
        loss = jnp.mean((batch["x"] + noise - params["dis"]["bias"]) ** 2) + jnp.sum(params["gen"]["kernel"] ** 2)
        return loss, (count_all(variables), {"dis_loss": loss})

    def metrics(params, variables, batch, key):
        return {"loss": jnp.sum((batch["x"] @ params["gen"]["kernel"] - 2 * batch["x"]) ** 2, -1)}

    return Task(init=init, moves={"gen": Move(("gen",), gen, gate), "dis": Move(("dis",), dis)}, metrics=metrics,
                schedule=lambda step: ("gen", "dis") if step % every == 0 else ("gen",), summary=lambda s, q, n: {"loss": s["loss"] / n})


def config(**optim) -> Config:
    return Config(seed=3, optim=Optim(**{"lr": 0.1, "decay_steps": 100, **optim}),
                  data=Data(dir="unused", batch=8), eval=Eval(batch=8), run=Run(steps=100))


def batch(seed: int = 0, n: int = 8) -> dict:
    return {"x": jnp.asarray(np.random.default_rng(seed).normal(size=(n, 2)), jnp.float32)}


def pictures(folder, counts=None, size: int = 8, seed: int = 0) -> str:
    """A tiny data set of grey pictures with two classes: a bright left or right half under noise. Returns its folder."""
    rng = np.random.default_rng(seed)
    fields = {"image": records.Field((size, size, 1), "uint8"), "label": records.Field((), "int64", ("left", "right"))}

    def examples(n):
        for i in range(n):
            image = rng.integers(0, 90, (size, size, 1), np.uint8)
            half = slice(0, size // 2) if i % 2 == 0 else slice(size // 2, size)
            image[:, half] += np.uint8(120)
            yield {"image": image, "label": i % 2}

    counts = counts or {"train": 96, "validation": 24, "test": 27}
    records.write(folder, "toy", fields, {name: examples(n) for name, n in counts.items()})
    return str(folder)


RATE, SAMPLES = 4000, 1000


def tones(n, seed=0) -> dict:
    """Rows of low and high tones under noise, each of two speakers: one quiet, one loud."""
    rng, time = np.random.default_rng(seed), np.arange(SAMPLES) / RATE
    label, speaker = np.arange(n) % 2, np.arange(n) // 2 % 2
    wave = np.sin(2 * np.pi * (400 + 800 * label + rng.uniform(-30, 30, n))[:, None] * time + rng.uniform(0, 6, n)[:, None])
    wave = wave * (0.1 + 0.5 * speaker)[:, None] * np.exp(-3 * time) + 0.001 * rng.standard_normal(wave.shape)
    return {"audio": np.round(32768 * wave).astype(np.int16)[..., None], "label": label, "speaker": speaker, "valid": np.full(n, SAMPLES, np.int32)}


def sounds(folder, counts=None) -> records.Spec:
    """A tiny data set of `tones`, as data_prep writes sounds."""
    fields = {"audio": records.Field((SAMPLES, 1), "int16"), "valid": records.Field((), "int32"), "group": records.Field((), "str"),
              "label": records.Field((), "int64", ("low", "high")), "speaker": records.Field((), "int64", ("ann", "bob"))}
    with records.Writer(folder, "tones") as writer:
        for seed, (split, count) in enumerate((counts or {"train": 64, "test": 24}).items()):
            rows = tones(count, seed)
            for i in range(count):
                writer.add(split, records.encode(fields, {"group": f"{split}{i}", **{k: v[i] for k, v in rows.items()}}))
        return writer.finish(fields, {}, {"rate": RATE, "peak": 0.62, "reference_db": -4.0})


LOW, HIGH, STEPS = 60, 75, 16
GRID = {"low": LOW, "high": HIGH, "steps_per_quarter": 4, "drums": 0, "velocity": 0, "steps_per_bar": 8, "tempo": 120.0}


def tunes(n, seed=0, steps=STEPS) -> np.ndarray:
    """Rolls [n, steps, 32] of one voice in C major: even ones low, in quarters, odd ones high, in eighths; one note in eight is a rest."""
    rng, scale, pitches = np.random.default_rng(seed), np.array([0, 2, 4, 5, 7, 9, 11]), HIGH - LOW + 1
    found = np.zeros((n, steps, 2 * pitches), np.uint8)
    for i in range(n):
        long = 4 if i % 2 == 0 else 2
        for start in range(0, steps, long):
            if rng.random() < 7 / 8:
                pitch = rng.choice(scale[:4] if i % 2 == 0 else scale[3:])
                found[i, start:start + long, pitch] = found[i, start, pitches + pitch] = 255
    return found


def rolls(folder, counts=None, **facts) -> records.Spec:
    """A tiny data set of `tunes`, as data_prep writes rolls."""
    fields = {"roll": records.Field((STEPS, 2 * (HIGH - LOW + 1)), "uint8"), "label": records.Field((), "int64", ("slow", "quick")),
              "group": records.Field((), "str"), "source": records.Field((), "str"), "start": records.Field((), "int32"),
              "valid": records.Field((), "int32")}
    with records.Writer(folder, "tunes") as writer:
        for seed, (split, count) in enumerate((counts or {"train": 96, "validation": 24, "test": 24}).items()):
            for i, roll in enumerate(tunes(count, seed)):
                piece = f"{split}{i // 4}"
                writer.add(split, records.encode(fields, {"roll": roll, "label": i % 2, "group": piece, "source": piece, "start": i % 4 * STEPS,
                                                          "valid": STEPS}))
        return writer.finish(fields, {}, GRID | facts)
