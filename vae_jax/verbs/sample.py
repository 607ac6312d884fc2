"""sample: new pictures, sounds or music from the prior, as one sheet and as arrays; sounds and music also as files.

    python -m vae_jax sample --workdir=runs/mnist --count=64
    python -m vae_jax sample --workdir=runs/mnist_label --count=10 --label=7      a conditional model
    python -m vae_jax sample --workdir=runs/fsdd --count=10 --label=7             any other: from the Gaussian of that class's training codes
    python -m vae_jax sample --workdir=runs/fsdd --count=10 --label=7 --spread=0.5      from N(the class's mean code, 0.5^2 I)

Writes WORKDIR/samples/NAME.png and NAME.npz (the same pictures, floats 0..1; `audio`, waves in -1..1), NAME from count, class, temperature and
seed; where classes come in turn, each has its column; of sounds also NAME/NUMBER.wav of the first 64, all at one gain.

    python -m vae_jax sample --workdir=runs/rave --count=8 --seconds=20           a model of the wave
    python -m vae_jax sample --workdir=runs/rave --fidelity=0.9 --temperature=0.7

Models of the wave (RAVE), after `analyse`: the first directions of their latents, those of a fidelity, go on from frame to frame as in the training
sounds, the others are noise of the prior. Without an analysis, or with --fidelity=0, every frame is drawn from the prior by itself. There is no
NAME.npz: NAME/NUMBER.npz of every sound has its latents, as `encode` writes them, for `decode`; one that was changed is not overwritten. Discrete
latents have no prior: after `analyse` the unused directions are noise as strong as training latents vary there, and of each frame the nearest codes
are taken; without an analysis each level's code is drawn by itself, as often as training chose it, to the power 1 / temperature.

    python -m vae_jax sample --workdir=runs/prior --count=16 --label=frog         a prior over codes of pictures, told the class

    python -m vae_jax sample --workdir=runs/songs --count=16 --label=jazz         a model of rolls
    python -m vae_jax sample --workdir=runs/songs --soundfont=FILE.sf2 --program=6

Models of rolls: NAME.npz has `roll` (uint8, what is played) and `mean` (probabilities); the first 64 are NAME/NUMBER.mid and NUMBER.wav, NAME.png
shows piano rolls. What sounds is at least as probable as WORKDIR/threshold.json says, which is chosen on held-out data when it is not there.

Priors over codes of pictures (code_prior): NAME.npz also has the `codes`.

    python -m vae_jax sample --workdir=runs/wave_prior --count=30                 a prior over codes of sounds, every class and speaker in turn
    python -m vae_jax sample --workdir=runs/wave_prior --label=7 --speaker=theo

Priors over codes of sounds (wave_code_prior): NAME/NUMBER-CLASS.wav as long as the prior made them, NAME.npz with their codes.
"""

import math

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import music, trained

COUNT = flags.DEFINE_integer("count", 64, "How many.", lower_bound=1, upper_bound=100_000)
LABEL = flags.DEFINE_string("label", "", "Class name, of labelled data; '' = the whole prior, or for a conditional model all classes in turn.")
SPEAKER = flags.DEFINE_string("speaker", "", "Priors over codes of sounds: who speaks; '' = everybody in turn.")
SPREAD = flags.DEFINE_float("spread", None, "With --label, for an unconditional model: standard deviation around the class's mean code, in place "
                            "of the covariance of its codes.", lower_bound=0.0)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Scales the code's distance from the prior's mean, or from the class's mean code; of a prior "
                                 "over codes of a codebook, divides its logits.", lower_bound=0.0)
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same samples.", lower_bound=0)
SECONDS = flags.DEFINE_float("seconds", None, "Models of the wave: length of each sound; as long as the crops of training if not given.",
                             lower_bound=0.1, upper_bound=600.0)
FIDELITY = flags.DEFINE_float("fidelity", None, "Models of the wave: of the directions that go on as in training; 0.95 if not given, 0 for none.",
                              lower_bound=0.0, upper_bound=1.0)
BATCH = 256  # pictures decoded at once
COLUMNS = 20  # of a sheet where each class in turn has its own, at most
FILES = 64  # sounds written as files


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import assess, assess_rolls, session
    from vae_jax import mesh as meshes

    for flag in (SPREAD, TEMPERATURE, SECONDS, FIDELITY):
        if flag.value is not None and not math.isfinite(flag.value):  # absl's bounds let nan through
            raise UserError(f"--{flag.name}={flag.value} is not a finite number: give one that is.")
    run = trained.open_run()
    if run.task.sample is None:
        raise UserError(f"the task {run.config.task!r} has no samples.")
    music.check(run)
    if run.task.front.hop:
        from vae_jax.verbs import sample_codes

        if SECONDS.value is not None or FIDELITY.value is not None or SPREAD.value is not None:
            raise UserError("--seconds, --fidelity and --spread are for other models: a prior over codes says itself when a sound ends.")
        count, asked = COUNT.value if COUNT.present else sample_codes.COUNT, {"label": LABEL.value, "speaker": SPEAKER.value}
        return sample_codes.main(run, count, asked, TEMPERATURE.value, SEED.value)
    if SPEAKER.value:
        raise UserError("--speaker is for priors over codes of sounds.")
    if run.task.front.kind == "wave":
        from vae_jax.verbs import sample_waves

        if LABEL.value or SPREAD.value is not None:
            raise UserError("--label and --spread are for models with one code an example; this one has a code for each frame.")
        count = COUNT.value if COUNT.present else sample_waves.COUNT
        return sample_waves.main(run, count, SECONDS.value, FIDELITY.value, TEMPERATURE.value, SEED.value)
    if SECONDS.value is not None or FIDELITY.value is not None:
        raise UserError("--seconds and --fidelity are for models of the wave, such as RAVE.")
    number = _number(run.spec.fields)
    if SPREAD.value is not None and (run.task.condition or number is None):
        raise UserError("--spread goes with --label, for a model that is not conditional.")
    columns, request, sample = 0, {"temperature": np.full(COUNT.value, TEMPERATURE.value, np.float32)}, run.task.sample
    if run.task.condition:
        names = run.spec.fields["label"].labels
        request["label"] = (np.arange(COUNT.value) % len(names) if number is None else np.full(COUNT.value, number)).astype(np.int32)
        columns = len(names) if number is None and len(names) <= COLUMNS else 0  # a class, a column
    parts = []
    with session.Leaving() as leaving:
        if number is not None and not run.task.condition:
            codes = _class_codes(run, number, leaving.now)
            if codes is None:
                trained.left(True)
                return 0
            request, sample = {"code": codes}, assess.from_codes(run.task)
        if run.task.front.kind == "roll" and assess_rolls.threshold(run, leaving.now) is None:
            trained.left(True)
            return 0
        sample = jax.jit(sample)
        for start in range(0, COUNT.value, BATCH):
            rows = np.minimum(np.arange(start, start + min(BATCH, COUNT.value)), COUNT.value - 1)
            key = jax.random.fold_in(jax.random.key(SEED.value), start)
            made = jax.device_get(sample(run.params, run.variables, key, {k: v[rows] for k, v in request.items()}))
            parts.append({k: v[: COUNT.value - start] for k, v in made.items()})
            if leaving.now():
                trained.left(True)
                return 0
    if meshes.is_main():
        made = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        label = "" if number is None else f"-class{number}"  # its number: a class name may be no file name
        spread = "" if SPREAD.value is None else f"-spread{SPREAD.value:g}"
        name = f"count{COUNT.value}{label}{spread}-temperature{TEMPERATURE.value:g}-seed{SEED.value}"
        if run.task.front.kind == "roll":
            music.samples(run, name, made, columns)
        else:
            _write(run, name, {"audio" if k == "audio/mean" else k.removeprefix("image/"): v for k, v in made.items()}, columns)
    return 0


def _write(run, name: str, arrays: dict, columns: int = 0) -> None:
    from vae_jax import session
    from vae_jax.media import images, sounds

    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    session.write_npz(folder / f"{name}.npz", arrays)
    shown = arrays["mean"][:400]
    shown = sounds.show(shown) if "audio" in arrays else shown
    columns = columns or math.isqrt(len(shown) - 1) + 1
    (folder / f"{name}.png").write_bytes(images.png(images.grid(images.resize(shown, columns), columns)))
    if "audio" in arrays:
        waves = arrays["audio"][:FILES]
        factor = sounds.gain(waves)
        (folder / name).mkdir(exist_ok=True)
        for i, wave in enumerate(waves):
            (folder / name / f"{i:03d}.wav").write_bytes(sounds.wav(wave, run.task.front.rate, factor))
        print(f"{len(waves)} wavs in {folder / name}, gain {factor:.3g}")
    print(folder / f"{name}.png")


def _number(fields) -> int | None:
    """The number of the class that --label names. Raises UserError."""
    if not LABEL.value:
        return None
    names = fields["label"].labels if "label" in fields else ()
    if not names:
        raise UserError("--label needs labelled data, and the data this run was trained on has no labels.")
    if LABEL.value not in names:
        raise UserError(f"--label={LABEL.value} is not a class of this data; classes are {', '.join(names[:20])}.")
    return names.index(LABEL.value)


def _class_codes(run, number: int, interrupted):
    """Codes [count, d] from one class's part of the aggregate posterior of the training split; None if interrupted. Raises UserError."""
    import numpy as np

    from vae_jax import assess
    from vae_jax.latents import classes

    if run.config.task == "code_prior":
        raise UserError("--label: this prior learned codes of all classes together; train one with --config.model.condition=label.")
    if run.task.encode is None or run.task.decode is None:
        raise UserError(f"--label: the task {run.config.task!r} has no codes of its classes.")
    fitted = assess.class_gaussians(run, interrupted)
    if fitted is None:
        return None
    if number not in fitted.label:
        raise UserError(f"--label={LABEL.value}: the training split has no example of this class.")
    return classes.draw(fitted, number, COUNT.value, SPREAD.value, TEMPERATURE.value, SEED.value).astype(np.float32)
