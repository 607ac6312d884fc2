"""What `reconstruct` does for models of the wave: held-out crops, or a file of any length, rate and number of channels."""

import pathlib

import numpy as np

from vae_jax import data, evaluate, recordings, records, session, tasks
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.losses import spectral
from vae_jax.media import images, sounds
from vae_jax.verbs import trained

SHOWN, HEARD = 24, 8  # crops on the sheet; crops rebuilt at once
COMPARED = 64  # of the run's own held-out crops, evenly spaced, whose error is printed beside that of other sounds


def main(run, origin: str, expression: str, count: int, wav: str) -> int:
    """See the verb's own words; the flags --data, --split, --count and --wav."""
    if wav and (origin or expression):
        raise UserError("--wav takes one file; leave --data and --split out.")
    return _file(run, wav) if wav else _split(run, origin, expression, count)


def _split(run, origin, expression, count) -> int:
    front, config = run.task.front, run.config.data
    if not expression and not config.test:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    source = data.Source(origin or config.dir, expression or config.test, config.memory_mb, config.crop)
    _check(run, origin or config.dir, source)
    with session.Leaving() as leaving:
        rows = _rebuilt(run, source, count, leaving.now)
        other = rows is not None and source.split.digest != run.spec.digest
        held = f"; {_held_out(run, leaving.now)}" if other else ""
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    folder, name = run.workdir / "reconstructions", f"{records.open_folder(origin or config.dir).name}-{source.split.name}"
    captions = [f"{d:.2f}   {e:.1f} dB" for d, e in zip(rows["distance"], rows["error_db"])]
    factor = write_pairs(folder, name, rows, captions, front.rate)
    session.write_npz(folder / f"{name}.npz", {k: rows[k] for k in ("row", "distance", "error_db", "high_error_db")})
    print(f"{len(rows['row'])} sounds, {_said(run, rows)}{held}; gain of the files {factor:.3g}")
    print(folder / f"{name}.png")
    return 0


def write_pairs(folder, name: str, rows: dict, captions, rate: int) -> float:
    """Waves `original` and `model` [n, t, c] as FOLDER/NAME/I-original.wav and I-model.wav, at one gain, which is returned, and FOLDER/NAME.png."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    factor = sounds.gain(rows["original"], rows["model"])
    for kind in ("original", "model"):
        for path in (folder / name).glob(f"*-{kind}.wav"):
            path.unlink()  # of an earlier call: another gain, or more examples
        for i, wave in enumerate(rows[kind]):
            (folder / name / f"{i:03d}-{kind}.wav").write_bytes(sounds.wav(wave, rate, factor))
    (folder / f"{name}.png").write_bytes(sheet(rows["original"], rows["model"], captions, rate))
    return factor


def sheet(originals, made, captions, rate: int) -> bytes:
    """A PNG of at most SHOWN pairs of waves [n, t, c] as spectrograms, original at the left, over their captions."""
    pair = sounds.spectrograms([originals[:SHOWN], made[:SHOWN]], rate)
    columns = min(3, len(pair[0]))
    cells = sounds.side_by_side([sounds.show(x) for x in pair], captions[:SHOWN], columns)
    return images.png(images.grid(cells, columns, max(4, cells.shape[2] // 40)))


def _file(run, wav) -> int:
    front = run.task.front
    wave = recordings.read(run, wav, "wav")
    folder, name = run.workdir / "reconstructions", f"wav-{pathlib.Path(wav).stem}"
    paths = {kind: folder / f"{name}-{kind}.wav" for kind in ("original", "model")}
    recordings.refuse(wav, *paths.values())
    with session.Leaving() as leaving:
        through = recordings.through(run, leaving.now)
        latents = through.encode(wave)
        made = None if latents is None else through.decode(latents, len(wave))
        rows = None if made is None else through.errors(wave, made)
        held = None if rows is None else _held_out(run, leaving.now)
    if held is None or not meshes.is_main():
        trained.left(held is None)
        return 0
    factor = write_pair(paths, folder / f"{name}.png", wave, made, front.rate)
    print(f"{len(wave) / front.rate:.2f} s, {_said(run, rows)} over {len(rows['distance'])} stretches of {front.shape[0] / front.rate:.2f} s; "
          f"{held}; gain of the files {factor:.3g}")
    print(paths["model"])
    return 0


def write_pair(paths: dict, picture, wave, made, rate: int) -> float:
    """One wave [t, c] and what was made of it at the `paths` {original, model}, no louder than they are, and their spectrograms; returns the gain."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    factor = min(1.0, sounds.gain(wave, made))
    for kind, values in (("original", wave), ("model", made)):
        paths[kind].write_bytes(sounds.wav(values, rate, factor))
    shown = np.concatenate([sounds.show(x) for x in sounds.spectrograms([wave[None], made[None]], rate)])
    picture.write_bytes(images.png(images.grid(shown, 1, 6)))
    return factor


def _rebuilt(run, source, count, interrupted):
    """Of at most `count` crops of a split: row, original and model [n, t, c] in time with each other, and the errors; None if interrupted."""
    m, front = run.config.model, run.task.front

    def rebuild(params, variables, batch):
        x, y = front.analyse(batch), tasks.rebuild(run.task, params, variables, batch)[1]["audio"]
        found = spectral.of_clips(x, y, front.rate, front.delay, m.distance, m.windows, m.high_hz, batch["valid"])
        return found | {"row": batch["index"], "original": x[:, :x.shape[1] - front.delay], "model": y[:, front.delay:]}

    batch = min(run.config.eval.batch, HEARD, count)
    return evaluate.collect(rebuild, run.params, run.variables, source, run.mesh, batch, count, interrupted)


def _said(run, rows) -> str:
    (distance, error, high), worst = (rows[k].mean() for k in ("distance", "error_db", "high_error_db")), rows["distance"].max()
    return f"spectral distance {distance:.3f} (worst {worst:.3f}), error {error:.2f} dB, above {run.config.model.high_hz:g} Hz {high:.2f}"


def _held_out(run, interrupted) -> str | None:
    """The run's own held-out errors in words; None if interrupted."""
    role, source = trained.held_out(run)
    if not role:
        return source
    rows = _rebuilt(run, source, COMPARED, interrupted)
    return None if rows is None else f"held-out ({role}, {len(rows['row'])} examples) {_said(run, rows)}"


def _check(run, origin, source) -> None:
    """Raises UserError for a data set that does not fit the model."""
    channels, rate, other = run.task.front.shape[1], run.task.front.rate, records.open_folder(origin).facts.get("rate")
    found = source.shapes["audio"][1]
    if found != channels or other != rate:
        raise UserError(f"the model takes sounds of {channels} channel{'s' * (channels > 1)} at {rate} Hz, but {origin} has {found} at {other}: "
                        f"prepare it with --rate={rate} --channels={channels}.")
