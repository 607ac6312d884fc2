"""MIDI files in, TFRecord folder out: piano rolls of windows that begin on bar lines.

  python -m data_prep.midi --source=bach_chorales.zip --out=datasets/chorales --transpose=-5:6 --split=train:0.8,validation:0.1,test:0.1
  python -m data_prep.midi --source=songs --out=datasets/songs --steps=256 --hop=64 --low=24 --high=101 --drums --split=train:0.9,test:0.1

A source is a folder, an archive or one file; with two folders or more in it these are genres (or composers), each with its share of every split.
A roll has --per_quarter steps a quarter note (vae_jax/rolls.py says how it is laid out). A window begins at the last bar line within --hop steps
of the one before, or within a longer bar at a multiple of --hop; a pickup is the end of a bar whose beginning is silent. Splits are by piece,
before anything is cut or transposed, and pieces that are the same music, in any key, stay together.
Every file found is kept or is in manifest.json with the reason why not. The same source, options and seed give the same bytes.
"""

import collections
import re
import statistics
import time
from typing import NamedTuple

from absl import flags

from data_prep import intake, pieces, same_music, script, splits
from vae_jax import records, rolls
from vae_jax.config import UserError

FLAGS = flags.FlagValues()
script.define_flags(FLAGS, "folder, zip or tar archive of MIDI files, or one file")
flags.DEFINE_integer("steps", 32, "steps of a window", 1, 65536, flag_values=FLAGS)
flags.DEFINE_integer("hop", 0, "steps from window to window, at most; 0 = --steps", 0, flag_values=FLAGS)
flags.DEFINE_integer("per_quarter", 4, "steps in a quarter note: 4 are sixteenths, 12 have triplets too", 1, 96, flag_values=FLAGS)
flags.DEFINE_integer("low", 36, "lowest pitch (MIDI key; 60 is middle C)", 0, 127, flag_values=FLAGS)
flags.DEFINE_integer("high", 83, "highest pitch", 0, 127, flag_values=FLAGS)
flags.DEFINE_bool("fold", False, "move notes outside --low..--high into it by octaves; else they are left out", flag_values=FLAGS)
flags.DEFINE_string("transpose", "", "FIRST:END: the training split also in these semitones, without END; -5:6 gives eleven keys", flag_values=FLAGS)
flags.DEFINE_bool("drums", False, "keep the drums (channel 10), in 47 further columns", flag_values=FLAGS)
flags.DEFINE_bool("velocity", False, "keep how hard notes are struck", flag_values=FLAGS)


class Piece(NamedTuple):
    """A usable file. given: split its source puts it in, or ''; genre: its folder, or ''; told: by pieces.listen."""

    item: intake.Item
    given: str
    genre: str
    told: dict


def read_grid() -> rolls.Grid:
    """The grid of the flags, without what only the data can tell. Raises UserError."""
    if FLAGS.low >= FLAGS.high:
        raise UserError(f"--low={FLAGS.low} should be below --high={FLAGS.high}.")
    if FLAGS.fold and FLAGS.high - FLAGS.low < 11:
        raise UserError(f"--fold needs an octave to move notes into, and --low={FLAGS.low} to --high={FLAGS.high} is less: widen it to 12 pitches.")
    return rolls.Grid(FLAGS.low, FLAGS.high, FLAGS.per_quarter, FLAGS.drums, FLAGS.velocity, 0.0, 0, FLAGS.fold)


def read_transpose(text: str) -> list[int]:
    """'-5:6' -> [-5, ..., 5]; '' -> [0]. Raises UserError."""
    match = re.fullmatch(r"([+-]?\d{1,3}):([+-]?\d{1,3})", text or "0:1")
    semitones = list(range(int(match[1]), int(match[2]))) if match else []
    if 0 not in semitones:
        raise UserError(f"--transpose={text} should be FIRST:END in semitones, FIRST at most 0 and END above 0: --transpose=-5:6.")
    return semitones


def read_hop() -> int:
    """Steps from window to window. Raises UserError."""
    if FLAGS.hop > FLAGS.steps:
        raise UserError(f"--hop={FLAGS.hop} is more than --steps={FLAGS.steps}: the music between two windows would be left out.")
    return FLAGS.hop or FLAGS.steps


def listen(found: intake.Census, grid: rolls.Grid, workers: int) -> tuple[list[Piece], list[tuple[str, str]]]:
    """The usable files of a census, with their folders as genres where there are several, and what was left out, with the reason."""
    given, parts = splits.read_folders([item.name for item in found.items], found.is_archive)
    results = intake.decode(found, [(item, {}) for item in found.items], pieces.listen, {"grid": grid}, workers)
    listed, skipped, progress = [], list(found.skipped), script.Progress(len(found.items), "files read")
    for done, (item, split, part, result) in enumerate(zip(found.items, given, parts, results), 1):
        progress.show(done, last=done == len(found.items))
        if result.reason:
            skipped.append((item.name, result.reason))
        else:
            listed.append(Piece(item, split, intake.printable(part[0]) if len(part) > 1 else "", result.about))
    if len({piece.genre for piece in listed} - {""}) < 2:
        return [piece._replace(genre="") for piece in listed], skipped
    skipped += [(piece.item.name, "lies beside the genre folders, not in one") for piece in listed if not piece.genre]
    return [piece for piece in listed if piece.genre], skipped


def unite(groups: list[str], listed: list[Piece]) -> list[str]:
    """The groups, those joined that hold the same music; a source's own splits stay as they are."""
    groups = list(groups)
    for split in {piece.given for piece in listed}:
        rows = [i for i, piece in enumerate(listed) if piece.given == split]
        for i, group in zip(rows, same_music.unite([groups[i] for i in rows], [listed[i].told["sketch"] for i in rows])):
            groups[i] = group
    return groups


def main() -> None:
    start = time.monotonic()
    script.require(FLAGS, "source", "out")
    grid, semitones, hop = read_grid(), read_transpose(FLAGS.transpose), read_hop()
    fractions, rule = splits.parse_fractions(FLAGS.split), splits.group_rule(FLAGS.group)
    with records.Writer(FLAGS.out, script.set_name(FLAGS.out, "rolls"), FLAGS.overwrite) as writer:
        found = intake.census(FLAGS.source, pieces.sniff, pieces.EXPECTED)
        workers = min(FLAGS.workers, max(1, len(found.items) // 4))
        listed, skipped = listen(found, grid, workers) if found.items else ([], found.skipped)
        if not listed:
            raise script.nothing_kept(FLAGS.source, "MIDI files to keep", skipped)
        own = [intake.text(rule(piece.item.name)) for piece in listed]
        groups, genres = unite(own, listed), [piece.genre for piece in listed]
        labels = tuple(sorted(set(genres) - {""}))
        home = dict(zip(reversed(groups), reversed(genres)))  # music that two genres have is divided with the genre of its first piece
        chosen = splits.choose_splits([piece.given for piece in listed], groups, fractions, FLAGS.seed, [home[g] for g in groups] if labels else None,
                                      [piece.told["steps"] for piece in listed])
        jobs = [(piece.item, {"semitones": semitones if split == "train" else [0],
                              "record": {"source": piece.item.name, "group": group, **({"label": labels.index(piece.genre)} if labels else {})}})
                for piece, group, split in zip(listed, groups, chosen)]
        options = {"grid": grid, "steps": FLAGS.steps, "hop": hop, "labels": labels, "transposed": bool(FLAGS.transpose)}
        progress, counts = script.Progress(len(jobs), "pieces cut"), collections.Counter()
        for done, (piece, split, result) in enumerate(zip(listed, chosen, intake.decode(found, jobs, pieces.cut, options, workers)), 1):
            progress.show(done, last=done == len(jobs))
            if result.reason:
                raise UserError(f"{intake.printable(piece.item.name)} was good when first read, and then {result.reason}: prepare the set again.")
            counts.update(result.about)
            for payload in result.blobs:
                writer.add(split, payload)
        music = describe(listed, chosen, own, groups, counts)
        told = {name: FLAGS[name].value for name in ("steps", "per_quarter", "low", "high", "fold", "transpose", "drums", "velocity")}
        told |= {"hop": hop, "split": fractions, "group": script.rule_name(FLAGS.group)}
        sizes = {split: len({g for g, s in zip(groups, chosen) if s == split}) for split in sorted(set(chosen))}
        described = script.manifest("data_prep.midi", told, script.describe_source(found, found.items), len(found.items) + len(found.skipped),
                                    len(listed), skipped, seed=FLAGS.seed, groups=sizes, music=music)
        facts = measure([piece for piece, split in zip(listed, chosen) if split == "train"] or listed, grid)
        spec = writer.finish(pieces.fields(grid, FLAGS.steps, labels, options["transposed"]), described, facts)
    for line in script.report_skipped(skipped):
        print(line)
    for line in tell(music, grid):
        print(line)
    numbers = ", ".join(f"{split} {count:,}" for split, count in spec.splits.items())
    print(f"{FLAGS.out}: {numbers}; windows of {FLAGS.steps} steps, {FLAGS.per_quarter} a quarter, {rolls.columns(grid)} columns, "
          f"{len(labels) or 'no'} genres; kept {len(listed):,} of {len(found.items) + len(found.skipped):,} found, in "
          f"{time.monotonic() - start:.1f} s")


def measure(listed: list[Piece], grid: rolls.Grid) -> dict:
    """What reading needs, of these pieces: see rolls.grid."""
    bars = collections.Counter()
    for piece in listed:
        bars.update(dict(piece.told["bars"]))
    return {"low": grid.low, "high": grid.high, "steps_per_quarter": grid.per_quarter, "drums": int(grid.drums), "velocity": int(grid.velocity),
            "fold": int(grid.fold), "steps_per_bar": max(sorted(bars), key=bars.get),
            "tempo": round(statistics.median(piece.told["tempo"] for piece in listed), 3)}


def describe(listed: list[Piece], chosen: list[str], own: list[str], groups: list[str], counts: dict) -> dict:
    """What the manifest says of all pieces kept. own, groups: before and after the same music was joined; counts: by pieces.cut."""
    quarters, joined = collections.Counter(), collections.defaultdict(list)
    for piece, split, before, after in zip(listed, chosen, own, groups):
        quarters[split] += piece.told["steps"] / FLAGS.per_quarter
        joined[after].append((before, piece.item.name))
    totals = {key: sum(piece.told[key] for piece in listed) for key in ("pitched", "drums", "outside", "off_grid")}
    same = [sorted(name for _, name in members) for _, members in sorted(joined.items()) if len({before for before, _ in members}) > 1]
    return {"quarters": dict(sorted(quarters.items())), "notes": totals, "windows_silent": counts["silent"],
            "transpositions_dropped": counts["dropped"], "same_music": same}


def tell(music: dict, grid: rolls.Grid) -> list[str]:
    """What should be known before training."""
    notes, told = music["notes"], []
    most = max(1, notes["pitched"])
    drums = f"; {notes['drums']:,} drums {'kept' if grid.drums else 'left out (--drums keeps them)'}" if notes["drums"] else ""
    told.append(f"{notes['pitched']:,} notes, {100 * notes['outside'] / most:.2f} % outside {grid.low}..{grid.high} and "
                f"{'moved into it by octaves' if grid.fold else 'left out'}; {100 * notes['off_grid'] / most:.1f} % begin between two steps{drums}")
    if music["windows_silent"]:
        told.append(f"dropped {music['windows_silent']:,} windows without a note")
    if music["transpositions_dropped"]:
        told.append(f"dropped {music['transpositions_dropped']:,} transpositions of pieces that would leave {grid.low}..{grid.high}")
    if music["same_music"]:
        told.append(f"{sum(map(len, music['same_music'])):,} pieces are the same music as another, perhaps in another key: "
                    f"{len(music['same_music']):,} groups, each in one split (manifest.json names them)")
    return told


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
