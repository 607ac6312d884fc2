"""What `reconstruct` does for models that tell sounds by codes: held-out recordings, or a file, spoken anew, if asked with one voice for all."""

import pathlib

import jax
import numpy as np

from vae_jax import assess_codes, data, evaluate, recordings, records, session
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.losses import spectral
from vae_jax.verbs import reconstruct_waves, trained

HEARD = 16  # sounds made at once
LONGEST = 60  # seconds of a file, all of which goes through the model at once
WINDOW = 512  # samples, of the spectra that are compared


def main(run, origin: str, expression: str, count: int, wav: str, condition: str) -> int:
    """See the verb's own words; the flags --data, --split, --count, --wav and --condition."""
    if wav and (origin or expression):
        raise UserError("--wav takes one file; leave --data and --split out.")
    target = _target(run, condition)
    return _file(run, wav, target) if wav else _split(run, origin, expression, count, target)


def _target(run, condition: str) -> int | None:
    """The number of the class that --condition names. Raises UserError."""
    if not condition:
        return None
    field = assess_codes.voice(run)
    if not field:
        raise UserError(f"--condition={condition}: the decoder of {run.workdir} is told nothing but codes (config.model.condition was empty).")
    names = run.spec.fields[field].labels
    if condition not in names:
        raise UserError(f"--condition={condition} is no {field} that the model was told of; these are {', '.join(names[:20])}.")
    return names.index(condition)


def _split(run, origin, expression, count, target) -> int:
    config, field = run.config.data, assess_codes.voice(run)
    if not expression and not config.test:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    folder = origin or config.dir
    _check(run, folder, target)
    source = assess_codes.whole(run, folder, expression or config.test)

    def rebuild(params, variables, batch):
        to = None if target is None else jax.numpy.full(len(batch["index"]), target)
        original, made = assess_codes.copy(run, params, variables, batch, to)
        return {"row": batch["index"], "original": original, "model": made, **_compared(run, original, made, batch["valid"])}

    with session.Leaving() as leaving:
        rows = evaluate.collect(rebuild, run.params, run.variables, source, run.mesh, min(HEARD, count), count, leaving.now)
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    name = f"{records.open_folder(folder).name}-{source.split.name}{'' if target is None else f'-{field}{target}'}"
    captions = [f"{error:.1f} dB   r {r:.2f}" for error, r in zip(rows["error_db"], rows["correlation"])]
    factor = reconstruct_waves.write_pairs(run.workdir / "reconstructions", name, rows, captions, run.task.front.rate)
    session.write_npz(run.workdir / "reconstructions" / f"{name}.npz", {k: rows[k] for k in ("row", "error_db", "correlation")})
    print(f"{len(rows['row'])} sounds{_as(run, target)}, {_said(rows)}; gain of the files {factor:.3g}")
    print(run.workdir / "reconstructions" / f"{name}.png")
    return 0


def _file(run, wav, target) -> int:
    front, field = run.task.front, assess_codes.voice(run)
    if field and target is None:
        raise UserError(f"--wav={wav} does not say whose voice it has, and the model must be told: give the {field} that it is to be made with, "
                        f"--condition={run.spec.fields[field].labels[0]}.")
    wave = recordings.read(run, wav, "wav")
    if len(wave) > LONGEST * front.rate:
        raise UserError(f"--wav={wav} lasts {len(wave) / front.rate:.0f} s, and the model takes at most {LONGEST} at once: cut it.")
    folder, name = run.workdir / "reconstructions", f"wav-{pathlib.Path(wav).stem}{'' if target is None else f'-{field}{target}'}"
    paths = {kind: folder / f"{name}-{kind}.wav" for kind in ("original", "model")}
    recordings.refuse(wav, *paths.values())

    @jax.jit
    def rebuild(weights, batch):
        original, made = assess_codes.copy(run, *weights, batch, None if target is None else np.full(1, target))
        return {"original": original, "model": made, **_compared(run, original, made, batch["valid"])}

    filled = max(len(wave), WINDOW)  # spectra need as much
    batch = {"audio": np.pad(wave, ((0, filled - len(wave)), (0, 0)))[None], "valid": np.array([len(wave)], np.int32)}
    rows = jax.device_get(rebuild((run.params, run.variables), batch))
    if not meshes.is_main():
        return 0
    factor = reconstruct_waves.write_pair(paths, folder / f"{name}.png", wave, rows["model"][0, :len(wave)], front.rate)
    print(f"{len(wave) / front.rate:.2f} s{_as(run, target)}, {_said(rows)}; gain of the files {factor:.3g}")
    print(paths["model"])
    return 0


def _compared(run, original, made, valid):
    error = spectral.error_db(original[..., 0], made[..., 0], run.task.front.rate, window=WINDOW, valid=valid)
    return {"error_db": error, "correlation": assess_codes.correlation(original, made, valid)}


def _as(run, target) -> str:
    return "" if target is None else f" as {run.spec.fields[assess_codes.voice(run)].labels[target]}"


def _said(rows) -> str:
    return (f"levels {rows['error_db'].mean():.2f} dB off (worst {rows['error_db'].max():.2f}), correlation of the waves "
            f"{np.abs(rows['correlation']).mean():.3f}")


def _check(run, folder, target) -> None:
    """Raises UserError for a data set that does not fit the model."""
    found, field, rate = records.open_folder(folder), assess_codes.voice(run), run.task.front.rate
    fields = data.example_fields(found.fields, run.config.data.crop)
    if "audio" not in fields or "valid" not in fields or fields["audio"].shape[1] != 1 or found.facts.get("rate") != rate:
        raise UserError(f"the model takes sounds of one channel at {rate} Hz, and {folder} is not so: prepare it with --rate={rate}.")
    names = run.spec.fields[field].labels if field else ()
    if field and target is None and (field not in fields or fields[field].labels != names):
        raise UserError(f"the model is told the {field}, one of {', '.join(names[:20])}, and {folder} does not have these: give "
                        f"--condition={names[0]} to have all of it as that one.")
