"""reconstruct: held-out pictures, sounds or music, or one's own, beside what the model makes of them (posterior mean, no draw).

    python -m vae_jax reconstruct --workdir=runs/mnist
    python -m data_prep.images --source=my_pictures --out=datasets/mine --size=28 --colour=grey
    python -m vae_jax reconstruct --workdir=runs/mnist --data=datasets/mine --split=train
    python -m vae_jax reconstruct --workdir=runs/fsdd --wav=mine.wav      any sound file of any length

Writes WORKDIR/reconstructions/NAME.png and NAME.npz (original, reconstruction, mse, row: where in the split), NAME from data set and split; of
sounds also NAME/I-original.wav and NAME/I-model.wav, all at one gain, I counting the examples from 0; those of an earlier call are removed. With
--wav, wav-NAME-model.wav, wav-NAME-original.wav (mono, at the model's rate) and wav-NAME.png, the spectrograms of the beginning, original above
model, NAME from the file. Other data than the run's own, and files, have the run's own held-out error printed beside theirs.

Models of the wave (RAVE) have their sounds written with all their channels, and a file comes back as long as it is and in time with the original, no
louder than the model plays it; NAME.npz holds errors instead of arrays.

    python -m vae_jax reconstruct --workdir=runs/wave_vqvae --condition=theo
    python -m vae_jax reconstruct --workdir=runs/wave_vqvae --condition=theo --wav=mine.wav

    python -m vae_jax reconstruct --workdir=runs/songs --midi=mine.mid      any MIDI file, window by window
    python -m vae_jax reconstruct --workdir=runs/songs --midi=mine.mid --condition=jazz      of a model that is told the genre

Models of rolls: NAME.npz has original, reconstruction and F1 of every window; of the first 16 there are I-original.mid, I-model.mid and wavs. With
--midi, midi-NAME-model.mid and midi-NAME-original.mid (what the roll keeps of the file), as wavs too, and midi-NAME.png, original above model.

Models that tell sounds by codes (wave_vqvae) speak them anew, sample by sample: as they were said, or with --condition all as one class that their
decoder is told, such as a speaker; NAME ends with its number. A file may last a minute.
"""

import dataclasses

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import music, trained

DATA = flags.DEFINE_string("data", "", "Folder written by data_prep; '' = the run's own data.")
SPLIT = flags.DEFINE_string("split", "", "Split, or part of one such as test[:100]; '' = the run's test split.")
COUNT = flags.DEFINE_integer("count", 64, "At most so many examples, evenly spaced over the split.", lower_bound=1)
WAV = flags.DEFINE_string("wav", "", "A sound file (WAV, AIFF, FLAC, Ogg, MP3), for a model of sounds.")
MIDI = flags.DEFINE_string("midi", "", "A MIDI file, for a model of rolls.")
CONDITION = flags.DEFINE_string("condition", "", "Models of sounds by codes: the class, such as a speaker, that everything is rebuilt as; of rolls: "
                                "the class that --midi is rebuilt as.")
SHOWN = 80  # pictures on the sheet
HEARD = 64  # sounds rebuilt at once
PIECES = 32  # of the model's length that are joined to one stretch of a long sound
COMPARED = 500  # of the run's own held-out examples, evenly spaced, whose error is printed beside that of other data
NAMED = 10  # speakers of the held-out split that are listed


def main(started: float) -> int:
    run = trained.open_run()
    if run.task.encode is None or run.task.decode is None:
        raise UserError(f"the task {run.config.task!r} rebuilds nothing.")
    music.check(run, MIDI.value and "midi")
    if run.task.front.kind == "roll":
        from vae_jax.verbs import reconstruct_rolls

        if WAV.value:
            raise UserError("--wav is for a model of sounds, and this one is of rolls: give --midi=FILE.mid.")
        return reconstruct_rolls.main(run, DATA.value, SPLIT.value, COUNT.value, MIDI.value, CONDITION.value)
    if run.task.front.hop:
        from vae_jax.verbs import reconstruct_codes

        return reconstruct_codes.main(run, DATA.value, SPLIT.value, COUNT.value, WAV.value, CONDITION.value)
    if CONDITION.value:
        raise UserError(f"--condition is for models of sounds by codes (wave_vqvae), and this is a run of the task {run.config.task!r}.")
    if "codes" in run.spec.fields:
        raise UserError(f"{run.config.data.dir} holds codes alone, without the pictures that reconstructions stand beside; "
                        "give the run that the codes are of.")
    if run.task.front.kind == "wave":
        from vae_jax.verbs import reconstruct_waves

        return reconstruct_waves.main(run, DATA.value, SPLIT.value, COUNT.value, WAV.value)
    if WAV.value:
        return _file(run)
    return _split(run)


def _rebuild(run, sound: bool):
    """(params, variables, batch) -> rows of the split, what the model saw, what it made of it, and with `sound` the wave of that."""
    import jax

    from vae_jax import tasks

    front = run.task.front

    def rebuild(params, variables, batch):
        made = tasks.rebuild(run.task, params, variables, batch)[1]
        found = {"row": batch["index"], "image": batch["image"] if front.kind == "image" else front.analyse(batch), "made": made["image"]}
        return found | ({"audio": batch["audio"], "wave": front.sound(made["image"], made.get("level"), jax.random.key(0))} if sound else {})

    return rebuild


def _split(run) -> int:
    """Examples of a data set."""
    from vae_jax import data, evaluate, records, session
    from vae_jax import mesh as meshes
    from vae_jax.media import images, measures, sounds

    origin, front = DATA.value or run.config.data.dir, run.task.front
    if not SPLIT.value and not run.config.data.test:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    source = data.Source(origin, SPLIT.value or run.config.data.test, run.config.data.memory_mb, run.config.data.crop)
    check(run, origin, source)
    batch = run.config.eval.batch if front.kind == "image" else min(run.config.eval.batch, HEARD, COUNT.value)
    with session.Leaving() as leaving:
        rows = evaluate.collect(_rebuild(run, front.kind == "audio"), run.params, run.variables, source, run.mesh, batch, COUNT.value, leaving.now)
        other = rows is not None and source.split.digest != run.spec.digest
        held = f"; {_held_out(run, leaving.now)}" if other else ""
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    errors = measures.mse(rows["image"], rows["made"])
    folder = run.workdir / "reconstructions"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{records.open_folder(origin).name}-{source.split.name}"
    arrays = {"original": rows["image"], "reconstruction": rows["made"], "mse": errors, "row": rows["row"]}
    columns, show = min(16, len(errors)), (lambda x: x) if front.kind == "image" else sounds.show
    pairs = images.bands([images.resize(show(rows[k][:SHOWN]), columns) for k in ("image", "made")], columns)
    (folder / f"{name}.png").write_bytes(images.png(images.grid(pairs, columns, band=2)))
    if front.kind == "image":
        print(f"{len(errors)} pictures, mean squared error {errors.mean():.5f} (worst {errors.max():.5f}) in units of black to white{held}")
    else:
        waves = {"original": rows["audio"][..., 0] / 32768.0, "model": rows["wave"]}
        factor = sounds.gain(*waves.values())
        (folder / name).mkdir(exist_ok=True)
        for kind, values in waves.items():
            for path in (folder / name).glob(f"*-{kind}.wav"):
                path.unlink()  # of an earlier call: another gain, or more examples
            for i, wave in enumerate(values):
                (folder / name / f"{i:03d}-{kind}.wav").write_bytes(sounds.wav(wave, front.rate, factor))
        arrays["wave"] = rows["wave"]
        mean, worst = (front.range_db * e ** 0.5 for e in (errors.mean(), errors.max()))
        print(f"{len(errors)} sounds, error {mean:.2f} dB (worst {worst:.2f}), mean squared error {errors.mean():.5f} in units of "
              f"{front.range_db:g} dB{held}; gain of the files {factor:.3g}")
    session.write_npz(folder / f"{name}.npz", arrays)
    print(folder / f"{name}.png")
    return 0


def check(run, origin, source) -> None:
    """Raises UserError for a data set that does not fit the model."""
    from vae_jax import data, records

    kind, given = run.task.front.kind, data.example_fields(source.split.fields, source.crop)
    wanted, found = run.spec.fields[kind].shape, given[kind].shape if kind in given else None
    if kind == "image" and found != wanted:
        raise UserError(f"the model takes pictures of {' x '.join(map(str, wanted))}, but {origin} has "
                        f"{'none' if found is None else ' x '.join(map(str, found))}; prepare it with --size={wanted[0]},{wanted[1]} "
                        f"--colour={'grey' if wanted[2] == 1 else 'rgb'}.")
    if kind == "roll":
        facts = records.open_folder(origin).facts
        if found != wanted or any(facts.get(k) != run.spec.facts[k] for k in ("low", "high", "steps_per_quarter", "drums", "velocity")):
            own = run.spec.facts
            raise UserError(f"the model takes rolls of {wanted[0]} steps, {own['steps_per_quarter']} a quarter, of pitches {own['low']} to "
                            f"{own['high']}, but {origin} has {'none' if found is None else 'others'}; prepare it with --steps={wanted[0]} "
                            f"--per_quarter={own['steps_per_quarter']} --low={own['low']} --high={own['high']}"
                            f"{' --drums' * own['drums']}{' --velocity' * own['velocity']}.")
    if kind == "audio":
        rate, other = run.spec.facts["rate"], records.open_folder(origin).facts.get("rate")
        if found != wanted or rate != other:
            raise UserError(f"the model takes sounds of {wanted[0]} samples at {rate} Hz, but {origin} has "
                            f"{'none' if found is None else f'{found[0]} at {other} Hz'}; prepare it with --rate={rate} "
                            f"--seconds={wanted[0] / rate:g}.")
    if run.task.condition and "label" not in source.fields:
        raise UserError(f"the model is conditional, but {origin} has no labels; prepare it from sub-folders named by class.")
    if run.task.condition and given["label"].labels != run.spec.fields["label"].labels:
        raise UserError(f"the model is conditional on the classes {', '.join(run.spec.fields['label'].labels[:20])}, but {origin} has "
                        f"{', '.join(given['label'].labels[:20])}; prepare it from sub-folders with the same names, all of them.")


def _file(run) -> int:
    """A sound file of any length."""
    import pathlib

    import numpy as np

    from data_prep.sounds import read_wave
    from vae_jax import mesh as meshes
    from vae_jax import session
    from vae_jax.media import images, sounds

    front = run.task.front
    if front.kind != "audio":
        raise UserError("--wav is for a model of sounds, but this run's data holds pictures.")
    if DATA.value or SPLIT.value:
        raise UserError("--wav takes one file; leave --data and --split out.")
    if run.task.condition:
        raise UserError("--wav has no label, and the model is conditional: prepare the file with data_prep and use --data.")
    wave, _ = read_wave(WAV.value, "wav", front.rate)
    with session.Leaving() as leaving:
        found = long_sound(run, wave, leaving.now)
        held = None if found is None else _held_out(run, leaving.now)
    if found is None or not meshes.is_main():
        trained.left(found is None)
        return 0
    rebuilt, squared, pictures = found
    folder, name = run.workdir / "reconstructions", f"wav-{pathlib.Path(WAV.value).stem}"
    folder.mkdir(parents=True, exist_ok=True)
    factor = sounds.gain(wave, rebuilt)
    for kind, values in (("original", wave), ("model", rebuilt)):
        (folder / f"{name}-{kind}.wav").write_bytes(sounds.wav(values, front.rate, factor))
    columns = min(8, len(pictures[0]))
    rows = images.bands([images.resize(sounds.show(x), columns) for x in pictures], columns)
    (folder / f"{name}.png").write_bytes(images.png(images.grid(rows, columns, band=2)))
    print(f"{len(wave) / front.rate:.2f} s in {len(squared)} pieces, error {front.range_db * np.sqrt(squared.mean()):.2f} dB (worst piece "
          f"{front.range_db * np.sqrt(squared.max()):.2f}); {held}; gain of the files {factor:.3g}")
    print(folder / f"{name}-model.wav")
    return 0


def long_sound(run, wave, interrupted=lambda: False):
    """What the model makes of a mono wave [n] at its rate: (wave [n], squared error of each piece, spectrograms of the first stretch, cut to the
    model's width: original and rebuilt); None if interrupted.

    Pieces of the model's length, half overlapping, are rebuilt one by one, their spectrograms joined, and these made into waves, a stretch of PIECES
    at a time: only the passages between stretches meet with phases of their own, and the device's memory does not grow with the length. The host's
    does: it holds the wave, the rebuilt stretches and the result.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vae_jax import fronts, tasks
    from vae_jax import mesh as meshes
    from vae_jax.media import sounds

    task, front, hop = run.task, run.task.front, run.config.model.sound.hop
    samples = run.spec.fields["audio"].shape[0]
    frames = 1 + samples // hop  # the others of a picture hold appended silence
    step = max(1, frames // 2)
    stretch = (PIECES - 1) * step * hop + samples
    fields = {**run.spec.fields, "audio": run.spec.fields["audio"]._replace(shape=(stretch, 1))}
    long = fronts.get(dataclasses.replace(run.spec, fields=fields), run.config.model.sound)

    def rebuild(params, variables, part):
        batch = {"audio": jnp.stack([part[i * step * hop:i * step * hop + samples] for i in range(PIECES)])[..., None]}
        x, level = front.analyse(batch), 1.0 if front.level is None else front.level(batch)
        made = tasks.rebuild(task, params, variables, batch)[1]
        both = {}
        for name, picture, white in (("original", x, level), ("made", jnp.clip(made["image"], 0.0, 1.0), made.get("level", 1.0))):
            absolute = picture[:, :, :frames, 0] + (jnp.reshape(white, (-1, 1, 1)) - 1.0)
            both[name] = sounds.stitch(jnp.swapaxes(absolute, 1, 2), step, jnp)
        peak = jnp.max(both["made"]) if front.level else jnp.float32(1.0)
        again = jnp.clip(both["made"] - peak + 1.0, 0.0, 1.0).T[None, :, :, None]
        made_wave = long.sound(again, peak[None] if front.level else None, jax.random.key(0))[0]
        return made_wave, jnp.mean((x - made["image"]) ** 2, (1, 2, 3)), both

    rebuild, needed = jax.jit(rebuild, out_shardings=meshes.replicated(run.mesh)), set(sounds.starts(len(wave), samples, step * hop).tolist())
    starts = sounds.starts(len(wave), stretch, stretch - samples)  # a stretch begins with the last piece of the one before
    parts, squared, first = [], {}, None
    for start in starts.tolist():
        part = wave[start:start + stretch]
        made_wave, errors, both = jax.device_get(rebuild(run.params, run.variables, np.pad(part, (0, stretch - len(part)))))
        parts.append(made_wave)
        squared |= {at: e for at, e in zip(range(start, start + stretch, step * hop), errors) if at in needed}
        first = first or both
        if interrupted():
            return None
    cells = max(1, min(len(first["made"]) // frames, -(-len(wave) // (frames * hop))))
    shown = [np.clip(first[name][:cells * frames], 0.0, 1.0).reshape(cells, frames, -1).swapaxes(1, 2)[..., None] for name in ("original", "made")]
    whole = sounds.crossfade(parts, samples, int(sounds.FADE_SECONDS * front.rate))[:len(wave)]
    return whole, np.array([squared[start] for start in sorted(squared)]), shown


def _held_out(run, interrupted) -> str:
    """The run's own held-out error in words, and how many speakers it is of, where they are known."""
    import numpy as np

    from vae_jax import evaluate
    from vae_jax.media import figures, measures

    front, (role, source) = run.task.front, trained.held_out(run)
    if not role:
        return source
    rows = evaluate.collect(_rebuild(run, False), run.params, run.variables, source, run.mesh, run.config.eval.batch, COMPARED, interrupted)
    if rows is None:
        return "its held-out error was not measured, as asked"
    error, of = measures.mse(rows["image"], rows["made"]).mean(), ""
    if "speaker" in source.fields:
        names = source.split.fields["speaker"].labels
        found = np.unique((source.arrays or source.split.read_all(["speaker"]))["speaker"])
        listed = [figures.class_name(names, k) for k in found[:NAMED]]
        of = f" of {len(found)} speaker{'s' * (len(found) > 1)}: {', '.join(listed)}{' and others' if len(found) > NAMED else ''}"
    shown = f"{front.range_db * error ** 0.5:.2f} dB" if front.kind == "audio" else f"{error:.5f}"
    return f"held-out ({role}, {len(rows['made'])} examples{of}) {shown}"
