"""Groups and splits: examples of one source stay together, and the same seed gives the same split."""

import collections
import fnmatch
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

from data_prep.intake import printable
from vae_jax.config import UserError

SPLIT_WORDS = {"train": "train", "t10k": "test", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
TRIES = 32


def group_rule(rule: str) -> Callable[[str], str]:
    """A function from a file's relative name to its group. '' : each file is its own group.

    A rule is a table file (tab-separated: file name or pattern with * and ?, group; more columns are ignored, the first line that
    matches counts) or a regular expression searched in the name: the group is the text captured by its first group that took part,
    or that group's name if it has one, so that (?P<fa>fa6?-solid)__|(.+?)__ makes one group of two sets. Raises UserError.
    """
    if not rule:
        return lambda name: name
    if os.path.isfile(rule):
        try:
            rows = [line.split("\t") for line in pathlib.Path(rule).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--group={rule} is not a readable UTF-8 table ({error}).") from None
        short = next((row for row in rows if len(row) < 2), None)
        if short:
            raise UserError(f"--group={rule}: the line {short[0]!r} has no tab; each line needs a file name, a tab and a group.")
        exact = {row[0]: row[1] for row in reversed(rows)}
        patterns = [(re.compile(fnmatch.translate(row[0])), row[1]) for row in rows if set("*?[") & set(row[0])]

        def from_table(name):
            group = exact.get(name) or next((g for pattern, g in patterns if pattern.match(name)), None)
            if group is None:
                raise UserError(f"--group={rule} has no line for {printable(name)}: add one, or take the file out of the source.")
            return group

        return from_table
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UserError(f"--group={rule} is neither a file nor a regular expression ({error}).") from None
    if not pattern.groups:
        raise UserError(f"--group={rule} captures nothing: put parentheses around the part of the name that is the group.")
    names = {index: name for name, index in pattern.groupindex.items()}

    def from_pattern(name):
        match = pattern.search(name)
        taken = next((i for i in range(1, pattern.groups + 1) if match and match[i] is not None), None)
        if taken is None:
            raise UserError(f"--group={rule} finds no group in {printable(name)}: widen the expression, or take the file out of the source.")
        return names.get(taken) or match[taken]

    return from_pattern


def parse_fractions(expression: str) -> dict[str, float]:
    """'train:0.8,test:0.2' -> {split: fraction}. Raises UserError unless the fractions are positive and sum to 1."""
    fractions = {}
    for part in filter(None, expression.replace(" ", "").split(",")):
        name, _, value = part.partition(":")
        if not re.fullmatch(r"[A-Za-z]\w*", name) or not re.fullmatch(r"\d*\.?\d+", value) or not float(value) or name in fractions:
            raise UserError(f"--split={expression}: {part!r} should be NAME:FRACTION with a fraction above 0, each name once.")
        fractions[name] = float(value)
    if fractions and abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"--split={expression}: the fractions sum to {sum(fractions.values()):g}, not to 1.")
    return fractions


def assign_splits(groups: Sequence[str], fractions: dict[str, float], seed: int, weights: Sequence[int] | None = None) -> list[str]:
    """The split of each example, whole groups together, numbers of examples (or sums of weights) as near to the fractions as the groups allow.

    Groups are taken in an order that hashes (seed, group), each to the split that lacks most; so it does not depend on the order
    of the examples. Of weighted groups, which differ more, the best of TRIES orders counts. A split that is due a whole group gets one.
    Raises UserError where a split stays empty.
    """
    counts = collections.Counter()
    for group, weight in zip(groups, itertools.repeat(1) if weights is None else weights):
        counts[group] += weight
    chosen, worst = {}, None
    for purpose in ["split"] if weights is None else [f"split {i}" for i in range(TRIES)]:
        lacking = {name: fraction * counts.total() for name, fraction in fractions.items()}
        bare = [name for name, fraction in fractions.items() if fraction * len(counts) > 1 - 1e-9]  # these must not stay empty
        made = {}
        for left, group in zip(range(len(counts), 0, -1), sorted(counts, key=lambda g: digest(seed, purpose, g))):
            split = max(bare if left <= len(bare) else lacking, key=lacking.get)
            made[group], lacking[split] = split, lacking[split] - counts[group]
            bare = [name for name in bare if name != split]
        off = max(abs(amount) / fractions[name] for name, amount in lacking.items())
        if worst is None or off < worst:
            chosen, worst = made, off
    empty = set(fractions) - set(chosen.values())
    if empty:
        raise UserError(f"The split {min(empty)!r} would be empty: {len(counts)} groups do not fill {len(fractions)} splits of these fractions: "
                        "add files, or ask for fewer with --split.")
    splits = [chosen[group] for group in groups]
    check_disjoint(zip(groups, splits))
    return splits


def choose_splits(given: Sequence[str], groups: Sequence[str], fractions: dict[str, float], seed: int,
                  classes: Sequence[str] | None = None, weights: Sequence[int] | None = None) -> list[str]:
    """The split of each example: the one its source gives it ('' = none), or train; fractions divide those given as train (or the only ones).

    classes: with these every class is divided on its own, so that each has its share of each split; weights: see assign_splits. With either, each
    split has a group at least.
    Raises UserError.
    """
    known = sorted(set(given))
    divided = "train" if "train" in known else known[0]
    if len(known) > 1 and "" in known:
        raise UserError("Some files have a split of their own and others none: give one kind as --source.")
    taken = set(fractions) & set(known) - {divided}
    if taken:
        raise UserError(f"--split names {min(taken)!r}, but the source has its own split of that name: divide {divided!r} into other names.")
    chosen = [split or "train" for split in given]
    part = [i for i, split in enumerate(given) if split == divided]
    for members in [part] if classes is None else [[i for i in part if classes[i] == c] for c in sorted({classes[i] for i in part})]:
        if fractions:
            count = len({groups[i] for i in members})
            if classes is not None and count < len(fractions):
                raise UserError(f"The class {classes[members[0]]} has {count} groups, too few for {len(fractions)} splits: "
                                "add files, widen --group, or ask for fewer splits.")
            shares = fractions if classes is None and weights is None else {name: max(share, 1 / count) for name, share in fractions.items()}
            sizes = None if weights is None else [weights[i] for i in members]
            for i, split in zip(members, assign_splits([groups[i] for i in members], shares, seed, sizes)):
                chosen[i] = split
    check_disjoint(zip(groups, chosen))
    return chosen


def read_folders(names: Sequence[str], is_archive: bool) -> tuple[list[str], list[list[str]]]:
    """What folders say of files: each one's split ('' = none) and the parts of its name below.

    A folder `train`, alone or beside `test` or `validation`, gives splits if every file is in one of them; the folder that most archives
    wrap around their contents is left out.
    """
    parts = [name.split("/") for name in names]
    while is_archive and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1 and parts[0][0].lower() not in SPLIT_WORDS:
        parts = [p[1:] for p in parts]
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if "train" in tops and tops <= set(SPLIT_WORDS) and all(len(p) > 1 for p in parts):
        return [SPLIT_WORDS[p[0].lower()] for p in parts], [p[1:] for p in parts]
    return [""] * len(parts), parts


def check_disjoint(pairs: Iterable[tuple[str, str]]) -> None:
    """Raises UserError if a group is in two splits; pairs are (group, split)."""
    home = {}
    for group, split in pairs:
        if home.setdefault(group, split) != split:
            raise UserError(f"The group {printable(group)!r} is in both {home[group]!r} and {split!r}: splits would not be independent.")


def digest(seed: int, purpose: str, name: str) -> bytes:
    """32 bytes that depend on the seed, a purpose and a name only: draws do not change when other files come or go."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
