"""Pictures in, TFRecord folder out.

  python -m data_prep.images --source=mnist_folder --out=datasets/mnist
  python -m data_prep.images --source=photos --out=datasets/photos --crop --size=128 --split=train:0.8,test:0.2
  python -m data_prep.images --source=bottles --out=datasets/bottles --recipe=bottles --split=train:0.8,test:0.2 --group='^(.+?)__'

A source is a folder of PNG, JPEG, BMP or WebP pictures (a folder `train` beside `test` gives the splits, the folder below the class), IDX files
as MNIST's, an .npz, a zip or tar of any of these, `digits` (scikit-learn's) or `tfds:NAME`. Every file found is kept or is in manifest.json
with the reason why not. The same source, options and seed give the same bytes, whatever the number of workers.
"""

import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags

from data_prep import intake, picture_arrays, pictures, pool, script, splits
from vae_jax import records
from vae_jax.config import UserError

FLAGS = flags.FlagValues()  # our own, so that importing another script beside this one does not clash
script.define_flags(FLAGS, "folder, archive, IDX or .npz file, 'digits', or 'tfds:NAME'")
flags.DEFINE_string("size", "", "H or H,W: pixels of every picture; '' = as they are", flag_values=FLAGS)
flags.DEFINE_bool("fit", False, "scale to --size keeping the aspect, fill up with zeros (--size alone stretches)", flag_values=FLAGS)
flags.DEFINE_bool("pad", False, "surround with zeros up to --size, or to a square; no scaling", flag_values=FLAGS)
flags.DEFINE_bool("crop", False, "cut disjoint pieces of --size; no scaling", flag_values=FLAGS)
flags.DEFINE_enum("colour", "", ["", "grey", "rgb"], "'' = as the pictures are, if all are alike", flag_values=FLAGS)
flags.DEFINE_integer("background", 255, "grey level behind transparent pictures", 0, 255, flag_values=FLAGS)
flags.DEFINE_enum("labels", "folder", ["folder", "none"], "whether sub-folders are classes", flag_values=FLAGS)
flags.DEFINE_list("per_class", [], "TRAIN,TEST: so many pictures of each class, chosen by --seed", flag_values=FLAGS)
flags.DEFINE_enum("recipe", "", ["", "bottles"], "bottles: 128x64, two random zooms, padded to 128x128; adds SPLIT_originals without zoom",
                  flag_values=FLAGS)
flags.DEFINE_integer("versions", 100, "augmented versions of each picture under --recipe", 1, 10000, flag_values=FLAGS)
flags.DEFINE_integer("binarize", None, "seed of one Bernoulli draw a pixel, stored as 0 or 255; unset = grey values are kept", 0, flag_values=FLAGS)


class Picture(NamedTuple):
    """One picture of the source before it is read. given: split the source puts it in, or ''; content: item, or None for an array."""

    name: str
    given: str
    label: int | None
    content: Any


class Source(NamedTuple):
    """What a source holds: pictures in order, class names or None, what was left out, its description, and how to get the contents.

    contents(jobs, options) -> Results in order, one for each of jobs: (Picture, what `pictures.records` is told of it).
    """

    pictures: list[Picture]
    classes: tuple[str, ...] | None
    skipped: list[tuple[str, str]]
    described: list[dict]
    contents: Any


def parse_size(text: str) -> list[int] | None:
    if not text:
        return None
    sides = text.split(",")
    if len(sides) > 2 or not all(re.fullmatch(r"\d{1,4}", side) and int(side) for side in sides):
        raise UserError(f"--size={text} should be H or H,W in pixels, at most 9999.")
    return [int(sides[0]), int(sides[-1])]


def read_options() -> dict:
    """The flags that shape the records, checked against each other."""
    size, rules = parse_size(FLAGS.size), [rule for rule in ("fit", "pad", "crop") if FLAGS[rule].value]
    if len(rules) > 1:
        raise UserError(f"--{rules[0]} and --{rules[1]} exclude each other: give one.")
    rule = rules[0] if rules else "resize" if size else ""
    if rule in ("fit", "crop") and not size:
        raise UserError(f"--{rule} needs --size.")
    if FLAGS.recipe and (rule or FLAGS.colour == "rgb"):
        raise UserError("--recipe=bottles fixes size and colour itself: leave out --size, --fit, --pad, --crop and --colour=rgb.")
    return {"rule": rule, "size": size, "colour": "grey" if FLAGS.recipe else FLAGS.colour, "background": FLAGS.background, "recipe": FLAGS.recipe,
            "versions": FLAGS.versions, "seed": FLAGS.seed, "binarize": FLAGS.binarize}


def open_source(name: str, use_folders: bool, workers: int) -> Source:
    """Takes the census of a source and says how its pictures are read. Raises UserError where it holds none."""
    if name == "digits":
        return _array_source(picture_arrays.digits_parts(), [], [{"name": "scikit-learn digits"}])
    if name.startswith("tfds:"):
        return _array_source(picture_arrays.tfds_parts(name[5:]), [], [{"name": os.path.basename(name[5:].rstrip("/"))}])
    found = intake.census(name, lambda head: pictures.sniff(head) or picture_arrays.sniff(head), pictures.EXPECTED + ", nor IDX or .npz")
    arrays = [item for item in found.items if item.kind in ("idx", "npz")]
    if arrays and len(arrays) < len(found.items):
        raise UserError(f"{intake.printable(name)} holds both arrays ({intake.printable(arrays[0].name)}) and single pictures: "
                        "give one of them as --source.")
    if not found.items:
        raise script.nothing_kept(name, "pictures", found.skipped)
    if arrays:
        if len(arrays) == 1 and not found.is_archive and arrays[0].kind == "idx":
            arrays += _labels_beside(arrays[0])
        return _array_source(picture_arrays.open_parts(found, arrays), found.skipped, script.describe_source(found, arrays))
    return _file_source(found, use_folders, workers)


def _labels_beside(item):
    path = re.sub(r"images?([-.])idx3", r"labels\1idx1", os.fsdecode(item.path))
    return intake.census(path, picture_arrays.sniff, "IDX").items if path != os.fsdecode(item.path) and os.path.isfile(path) else []


def _array_source(parts, skipped, described):
    listed, classes = [], next((part.classes for part in parts if part.classes), None)
    labelled = all(part.labels is not None for part in parts)
    if labelled and classes is None:
        classes = tuple(str(i) for i in range(1 + max(int(part.labels.max(initial=0)) for part in parts)))
    for part in parts:
        listed += [Picture(f"{part.name}:{i}", part.split, int(part.labels[i]) if labelled else None, None) for i in range(part.count)]

    def contents(jobs, options):
        wanted = iter(jobs)
        job = next(wanted, None)
        for part in parts:
            for i, values in enumerate(part.pictures()):
                if job is None:
                    return
                if job[0].name != f"{part.name}:{i}":
                    continue
                try:
                    yield pool.Result("", *pictures.records(pictures.from_array(values, options["colour"], options["background"]), job[1], options))
                except pool.Skip as skip:
                    yield pool.Result(str(skip), {}, [])
                job = next(wanted, None)
        if job is not None:
            raise UserError(f"The source ended before {job[0].name}, which it declares.")

    return Source(listed, classes if labelled else None, skipped, described, contents)


def _file_source(found, use_folders, workers):
    given, parts = splits.read_folders([item.name for item in found.items], found.is_archive)
    folders = [intake.printable(p[0]) if len(p) > 1 else None for p in parts]
    classes = tuple(sorted(set(folders) - {None})) if use_folders else ()
    number = {name: i for i, name in enumerate(classes)}
    listed = [Picture(item.name, split, number.get(folder), item) for item, split, folder in zip(found.items, given, folders)]
    skipped = list(found.skipped)
    if classes:
        skipped += [(p.name, "lies beside the class folders, not in one") for p in listed if p.label is None]
        listed = [p for p in listed if p.label is not None]

    def contents(jobs, options):
        told = [(picture.content, {**about, "kind": picture.content.kind}) for picture, about in jobs]
        return intake.decode(found, told, pictures.decode, options, min(workers, max(1, len(told) // 4)))

    return Source(listed, classes or None, skipped, script.describe_source(found, found.items), contents)


def choose_per_class(listed: list[Picture], chosen: list[str], amounts: list[str], classes, seed: int) -> set[int]:
    """Indices of the pictures that --per_class keeps: so many of each class of `train` and of `test`."""
    if len(amounts) > 2 or not all(re.fullmatch(r"[1-9]\d*", amount) for amount in amounts) or classes is None:
        raise UserError("--per_class should be TRAIN,TEST, whole numbers above 0, and needs a source with classes.")
    kept = set()
    for split, amount in zip(("train", "test"), map(int, amounts)):
        members = [[] for _ in classes]
        for i, picture in enumerate(listed):
            if chosen[i] == split:
                members[picture.label].append(i)
        for name, found in zip(classes, members):
            if len(found) < amount:
                raise UserError(f"--per_class asks for {amount} pictures of class {name} in {split!r}, which has {len(found)}.")
            kept.update(sorted(found, key=lambda i: splits.digest(seed, "per_class", listed[i].name))[:amount])
    return kept


def results(source: Source, jobs: list, options: dict, skipped: list) -> Iterator[pool.Result]:
    """The kept results, all of one shape; the others join `skipped`. Raises UserError at the first picture of another shape."""
    shape, first = None, ""
    progress = script.Progress(len(jobs), "pictures")
    for done, ((picture, _), result) in enumerate(zip(jobs, source.contents(jobs, options)), 1):
        progress.show(done, last=done == len(jobs))
        if result.reason:
            skipped.append((picture.name, result.reason))
            continue
        shape, first = shape or result.about["shape"], first or picture.name
        if result.about["shape"] != shape:
            (h, w, c), (h0, w0, c0) = result.about["shape"], shape
            ways = "--colour=grey or --colour=rgb" if (h, w) == (h0, w0) else "--size, alone or with --fit, --pad or --crop"
            raise UserError(f"The pictures differ: {intake.printable(first)} is {h0}x{w0}x{c0}, {intake.printable(picture.name)} {h}x{w}x{c} "
                            f"(height, width, channels). Say what to make of them with {ways}.")
        yield result


def main() -> None:
    start = time.monotonic()
    script.require(FLAGS, "source", "out")
    options, fractions, rule = read_options(), splits.parse_fractions(FLAGS.split), splits.group_rule(FLAGS.group)
    with records.Writer(FLAGS.out, script.set_name(FLAGS.out, "pictures"), FLAGS.overwrite) as writer:
        source = open_source(FLAGS.source, FLAGS.labels == "folder", FLAGS.workers)
        if not source.pictures:
            raise script.nothing_kept(FLAGS.source, "pictures", source.skipped)
        groups = [intake.text(rule(picture.name)) for picture in source.pictures]
        chosen = splits.choose_splits([picture.given for picture in source.pictures], groups, fractions, FLAGS.seed)
        keep = choose_per_class(source.pictures, chosen, FLAGS.per_class, source.classes, FLAGS.seed) if FLAGS.per_class else range(len(chosen))
        skipped = source.skipped + [(p.name, "beyond --per_class") for i, p in enumerate(source.pictures) if i not in keep]
        jobs = [(p, {"name": p.name, "group": groups[i], "split": chosen[i], "label": p.label}) for i, p in enumerate(source.pictures) if i in keep]
        kept, shape = 0, None
        for result in results(source, jobs, options, skipped):
            kept, shape, at = kept + 1, result.about["shape"], 0
            for split, count in result.about["splits"]:
                for payload in result.blobs[at:at + count]:
                    writer.add(split, payload)
                at += count
        if not kept:
            raise UserError(f"No picture of {intake.printable(FLAGS.source)} was kept: {'; '.join(script.report_skipped(skipped))}.")
        found = len(source.pictures) + len(source.skipped)
        told = {**options, "labels": FLAGS.labels, "split": fractions, "per_class": FLAGS.per_class, "group": script.rule_name(FLAGS.group)}
        sizes = {split: len({g for g, s in zip(groups, chosen) if s == split}) for split in sorted(set(chosen))}
        described = script.manifest("data_prep.images", told, source.described, found, kept, skipped, seed=FLAGS.seed, groups=sizes)
        spec = writer.finish(pictures.fields(shape, source.classes, options), described)
    for line in script.report_skipped(skipped):
        print(line)
    counts = ", ".join(f"{split} {count:,}" for split, count in spec.splits.items())
    print(f"{FLAGS.out}: {counts}; pictures {shape[0]}x{shape[1]}x{shape[2]}, {len(source.classes or ()) or 'no'} classes; "
          f"kept {kept:,} of {found:,} found, in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
