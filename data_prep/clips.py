"""Sound files to a data set: what speech, genres and waveforms share. Flags, splits, the writing of records, and what the manifest says of them."""

import collections
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from absl import flags

from data_prep import intake, pool, script, sounds, splits
from data_prep.tfds_source import open_builder, split_name
from vae_jax import records
from vae_jax.config import UserError

MAX_SECONDS = 30  # of one record
NAMED = 12  # classes whose hours are printed; the manifest has all


class Clip(NamedTuple):
    """One sound file. given: split its source puts it in, or ''; group: what it belongs to; marks: names of its classes by field; content: item."""

    name: str
    given: str
    group: str
    marks: dict[str, str]
    content: intake.Item


class Source(NamedTuple):
    """Named sounds before a layout reads their names.

    decode(function, jobs, options): Results in order; function: sounds.decode or sounds.measure; jobs: (item, what it is told).
    """

    items: list[intake.Item]
    is_archive: bool
    skipped: list[tuple[str, str]]
    described: list[dict]
    decode: Callable[[Callable, list, dict], Iterator[pool.Result]]


def define_flags(values: flags.FlagValues, rate: int) -> None:
    script.define_flags(values, "folder, zip or tar archive of WAV, AIFF, FLAC, Ogg or MP3 files, or 'tfds:NAME'")
    flags.DEFINE_integer("rate", rate, "samples a second of the records", 1000, 192_000, flag_values=values)
    flags.DEFINE_float("seconds", 1.0, f"length of a record, at most {MAX_SECONDS}; whole samples, rounded down", flag_values=values)


def samples_of(seconds: float, rate: int) -> int:
    """Whole samples in so many seconds, counted in decimals: 0.29 s at 100 Hz are 29. Raises UserError."""
    samples = int(Fraction(repr(seconds)) * rate) if 0 < seconds <= MAX_SECONDS else 0
    if not samples:
        raise UserError(f"--seconds={seconds:g} should be above 0 and at most {MAX_SECONDS}, and hold at least one sample.")
    return samples


def open_source(name: str, class_field: str, workers: int) -> Source:
    """Takes the census of a source. class_field: the field of a TFDS set that stands in for the folder. Raises UserError."""
    if name.startswith("tfds:"):
        return _tfds_source(name[5:], class_field, workers)
    found = intake.census(name, sounds.sniff, sounds.EXPECTED)
    if not found.items:
        raise script.nothing_kept(name, "sounds", found.skipped)
    return Source(found.items, found.is_archive, found.skipped, script.describe_source(found, found.items),
                  lambda function, jobs, options: intake.decode(found, jobs, function, options, min(workers, len(jobs))))


def _tfds_source(name, class_field, workers):
    """A TFDS set with a sound in each row, as if it were files named [SPLIT/][CLASS/]FILENAME."""
    tfds, builder = open_builder(name)
    features, several = builder.info.features, len(builder.info.splits) > 1
    field = next((f for f in features if isinstance(features[f], tfds.features.Audio)), None)
    rate = getattr(features[field], "sample_rate", None) if field else None
    if not rate:
        raise UserError(f"--source=tfds:{name} has no sound of a stated sample rate; its fields are {', '.join(features)}.")
    told = [key for key in (class_field, f"{field}/filename") if key in features]
    names = getattr(features[class_field], "names", None) if class_field in features else None
    items, sets = [], []
    for split in builder.info.splits:
        rows = builder.as_dataset(split=split, shuffle_files=False)
        sets.append(rows)
        for i, row in enumerate(tfds.as_numpy(rows.map(lambda r: {key: r[key] for key in told} or {"none": 0}))):
            file = row[told[-1]].decode() if f"{field}/filename" in told else f"{i:06d}.wav"
            folders = ([split_name(split)] if several else []) + ([names[int(row[class_field])]] if names else [])
            items.append(intake.Item("/".join([*folders, file]), "wav", 0, position=len(items)))

    def decode(function, jobs, options):
        wanted = {item.position: about for item, about in jobs}
        rows = (row[field] for rows in sets for row in tfds.as_numpy(rows.map(lambda r: {field: r[field]})))
        tasks = (pool.Task(sounds.as_wav(values, rate), None, None, wanted[i]) for i, values in enumerate(rows) if i in wanted)
        return pool.decode(tasks, function, options, workers=min(workers, len(jobs)))

    return Source(items, False, [], [{"name": name.rstrip("/").rsplit("/", 1)[-1]}], decode)


def by_folder(source: Source, field: str) -> tuple[list[Clip], list[tuple[str, str]]]:
    """CLASS/... -> clips whose folder is their class, in this field, and what lies outside."""
    given, parts = splits.read_folders([item.name for item in source.items], source.is_archive)
    told = list(zip(source.items, given, parts))
    kept = [Clip(item.name, split, item.name, {field: intake.printable(p[0])}, item) for item, split, p in told if len(p) > 1]
    return kept, [(item.name, f"lies beside the {field} folders, not in one") for item, _, p in told if len(p) == 1]


def durations(source: Source, clips: list[Clip]) -> list[int]:
    """Milliseconds of each clip as its file tells without being decoded; 1 where it tells nothing."""
    found, spoken = [], 0
    for result in source.decode(sounds.measure, [(clip.content, {"kind": clip.content.kind}) for clip in clips], {}) if clips else ():
        spoken = result.about.get("milliseconds", spoken)
        if result.last:
            found.append(max(1, spoken))
            spoken = 0
    return found


def regroup(clips: list[Clip], group: str) -> list[Clip]:
    """The clips in the groups that --group gives them, or as they are. Raises UserError."""
    rule = splits.group_rule(group)
    return [clip._replace(group=intake.text(rule(clip.name) if group else clip.group)) for clip in clips]


def prepare(values: flags.FlagValues, made_by: str, source: Source, clips: list[Clip], skipped: list[tuple[str, str]], limit: int | None,
            told: dict, by: str = "", weights: list[int] | None = None, channels: int = 1, fill: bool = True) -> None:
    """Writes the data set of a script's flags and prints what became of it.

    clips: those to decode; skipped: files left out so far; limit: records of a file, or None; told: options for the manifest beside the common
    ones; by: field whose classes each have their share of every split; weights: of the clips in these shares, else with `by` their bytes, since
    files differ in length; fill: records of one length, the last of a file filled up with zeros, else of any. Raises UserError.
    """
    start, samples = time.monotonic(), samples_of(values.seconds, values.rate)
    fractions, clips = splits.parse_fractions(values.split), regroup(clips, values.group)
    with records.Writer(values.out, script.set_name(values.out, "sounds"), values.overwrite) as writer:
        if not clips:
            raise script.nothing_kept(values.source, "sounds of this layout", skipped)
        groups = [clip.group for clip in clips]
        strata = [clip.marks[by] for clip in clips] if by else None
        sizes = weights or ([max(1, clip.content.bytes) for clip in clips] if by else None)
        chosen = splits.choose_splits([clip.given for clip in clips], groups, fractions, values.seed, strata, sizes)
        labels = {field: sort_names({clip.marks[field] for clip in clips}) for field in clips[0].marks}
        jobs = [(clip.content, {"name": clip.name, "kind": clip.content.kind, "group": group,
                                "marks": {field: labels[field].index(name) for field, name in clip.marks.items()}})
                for clip, group in zip(clips, groups)]
        total, found, skipped, kept = _Total(values.rate), len(clips) + len(skipped), list(skipped), 0
        results = source.decode(sounds.decode, jobs, {"rate": values.rate, "samples": samples, "limit": limit, "channels": channels, "fill": fill})
        progress = script.Progress(len(clips), "files")
        for done, (clip, split) in enumerate(zip(clips, chosen), 1):
            reason, tally = _write(writer, split, clip, results)
            progress.show(done, last=done == len(clips))
            if reason:
                skipped.append((clip.name, reason))
            else:
                kept += 1
                total.add(split, clip, tally)
        if not kept:
            raise script.nothing_kept(values.source, "sounds to keep", skipped)
        options = {"rate": values.rate, "seconds": values.seconds, "samples": samples, "split": fractions, "group": script.rule_name(values.group),
                   **told}
        sizes = {split: len({g for g, s in zip(groups, chosen) if s == split}) for split in sorted(set(chosen))}
        described = script.manifest(made_by, options, source.described, found, kept, skipped, seed=values.seed, groups=sizes, sound=total.manifest())
        facts = total.facts() | ({} if fill else {"channels": channels})
        spec = writer.finish(sounds.fields(samples if fill else None, channels, labels), described, facts)
    for line in script.report_skipped(skipped):
        print(line)
    seconds = time.monotonic() - start
    counts = ", ".join(f"{split} {count:,}" for split, count in spec.splits.items())
    classes = "".join(f"; {len(names)} {field}s" for field, names in labels.items())
    form = f"{samples} samples" if fill else f"any length up to {samples} samples, {'stereo' if channels == 2 else 'mono'}"
    print(f"{values.out}: {counts}; {form} at {values.rate} Hz{classes}; kept {kept:,} of {found:,} found, {total.seconds() / 60:.1f} "
          f"minutes of sound in {seconds:.1f} s ({total.seconds() / seconds:.0f} times real time)")
    for line in [] if fill else total.lines():
        print(line)


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Class names in order; whole numbers by value."""
    return tuple(sorted(names, key=lambda n: (0, int(n), n) if n.isascii() and n.isdigit() else (1, 0, n)))


def _write(writer, split, clip, results):
    """Writes one file's records: (the reason it was left out, what sounds.decode tells of it)."""
    tally, begun = {}, False
    for result in results:
        if result.reason and begun:
            raise UserError(f"{intake.printable(clip.name)} was good when first read, and then {result.reason}: prepare the set again.")
        for payload in result.blobs:
            writer.add(split, payload)
        begun, tally = begun or bool(result.blobs), tally or result.about
        if result.last:
            return result.reason, tally
    raise AssertionError("a file without an answer")


class _Total:
    """What the manifest and the facts say of all files kept."""

    def __init__(self, rate):
        self.rate, self.samples, self.rates = rate, collections.defaultdict(collections.Counter), collections.Counter()
        self.sums, self.peaks, self.levels, self.cut_files = collections.Counter(), collections.Counter(), collections.Counter(), 0

    def add(self, split, clip, tally):
        for name in [f"{field} {name}" for field, name in clip.marks.items()] + ["all"]:
            self.samples[split][name] += tally["samples"]
        self.sums.update({name: tally[name] for name in ("silence", "clipped", "cut", "padded")})
        self.rates[str(tally["rate"])] += 1
        self.cut_files += tally["cut"] > 0
        self.peaks[split], self.levels[split] = max(self.peaks[split], tally["peak"]), max(self.levels[split], tally["level"])

    def seconds(self):
        return sum(counts["all"] for counts in self.samples.values()) / self.rate

    def manifest(self):
        hours = {split: {name: round(count / self.rate / 3600, 5) for name, count in sorted(counts.items())}
                 for split, counts in sorted(self.samples.items())}
        return {"hours": hours, "silence_seconds": round(self.sums["silence"] / self.rate, 3), "clipped_samples": self.sums["clipped"],
                "records_filled_up": self.sums["padded"], "files_cut": self.cut_files, "seconds_cut": round(self.sums["cut"] / self.rate, 3),
                "file_rates": dict(sorted(self.rates.items(), key=lambda r: int(r[0]))), "peak": max(self.peaks.values()) / 32768}

    def lines(self):
        """Hours of every split and class, and what should be listened to before training."""
        told = []
        for split, counts in sorted(self.samples.items()):
            hours = {name: f"{intake.printable(name)} {count / self.rate / 3600:.3f}" for name, count in counts.most_common() if name != "all"}
            more = f" and {len(hours) - NAMED} more" if len(hours) > NAMED else ""
            told.append(f"{split} {counts['all'] / self.rate / 3600:.3f} h{': ' if hours else ''}{', '.join(list(hours.values())[:NAMED])}{more}")
        told.append(f"silence {100 * self.sums['silence'] / self.rate / self.seconds():.1f} % (20 ms below {20 * np.log10(sounds.QUIET):.0f} dB), "
                    f"{self.sums['clipped']:,} values clipped, peak {max(self.peaks.values()) / 32768:.3f} of full scale")
        return told

    def facts(self):
        """What reading needs; peak and reference_db (dB; 0 is a sine at full scale) are of the training split, or of all if there is none."""
        measured = ["train"] if "train" in self.peaks else list(self.peaks)
        peak, level = (max(of[split] for split in measured) for of in (self.peaks, self.levels))
        return {"rate": self.rate, "peak": peak / 32768, "reference_db": round(float(20 * np.log10(level)), 4)}
