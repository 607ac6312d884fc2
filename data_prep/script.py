"""What makes a data_prep module a script: its manifest, its progress line, and its manners at the command line."""

import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from data_prep.intake import Census, Item, printable, text
from vae_jax.config import UserError


def usable_cpus() -> int:
    """How many CPUs this process may use, or, where the system does not say (macOS), how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def define_flags(values: flags.FlagValues, source: str) -> None:
    """The flags that every script has; `source`: what --source may be."""
    flags.DEFINE_string("source", None, source, flag_values=values)
    flags.DEFINE_string("out", None, "folder to write; its last part names the data set", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace a data set that is already there, once the new one is complete", flag_values=values)
    flags.DEFINE_string("split", "", "train:0.8,validation:0.1,test:0.1: by group, before anything is cut or augmented; where the source has splits, "
                        "of its training split", flag_values=values)
    flags.DEFINE_string("group", "", "what stays together: a regular expression that captures a part of the name, or a table: file, tab, group",
                        flag_values=values)
    flags.DEFINE_integer("seed", 0, "of splits and random choices", 0, flag_values=values)
    flags.DEFINE_integer("workers", min(256, usable_cpus()), "decoding processes", 1, 256, flag_values=values)


def require(values: flags.FlagValues, *names: str) -> None:
    """Raises UserError for a flag that was not given."""
    for name in names:
        if not values[name].value:
            raise UserError(f"--{name} is missing: it is the {values[name].help.split(';')[0]}.")


def set_name(out: str, default: str) -> str:
    """The name of a data set written to this folder."""
    return re.sub(r"^[^a-z]+|[^a-z0-9_]", "", os.path.basename(os.path.abspath(out)).lower().replace("-", "_")) or default


def rule_name(group: str) -> str:
    """--group as the manifest keeps it: no path."""
    return os.path.basename(group) if os.path.isfile(group) else group


def nothing_kept(source: str, what: str, skipped: Sequence[tuple[str, str]]) -> UserError:
    return UserError(f"{printable(source)} holds no {what}: {'; '.join(report_skipped(skipped)) or 'it is empty'}.")


def describe_source(found: Census, items: Sequence[Item]) -> list[dict]:
    """The sources' names, sizes and, for single files, SHA-256; relative names only."""
    if not found.is_archive and found.source.is_dir() and len(items) > 16:
        return [{"name": found.source.resolve().name, "files": len(items), "bytes": sum(i.bytes for i in items)}]
    paths = [(found.source.name, found.source)] if found.is_archive else [(i.name, os.fsdecode(i.path)) for i in items]
    described = []
    for name, path in paths:
        with open(path, "rb") as file:
            described.append({"name": text(name), "bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return described


def manifest(made_by: str, options: dict, sources: list[dict], found: int, kept: int, skipped: Sequence[tuple[str, str]], **more) -> dict:
    """The part of manifest.json that says where a data set came from. Raises AssertionError unless kept + skipped = found."""
    assert kept + len(skipped) == found, f"{kept} kept + {len(skipped)} skipped is not {found} found"
    reasons = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name)
    return {"made_by": made_by, "options": options, "sources": sources, "found": found, "kept": kept,
            "skipped": dict(sorted(reasons.items())), "skipped_count": len(skipped), **more}


def report_skipped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """One line a reason, with one example."""
    reasons = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name)
    return [f"skipped {len(names):,}: {printable(reason)} ({printable(names[0])}{', ...' if len(names) > 1 else ''})"
            for reason, names in sorted(reasons.items())]


class Progress:
    """A line on standard error: rewritten in place on a terminal, else every ten seconds."""

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.start, self.terminal = total, unit, time.monotonic(), sys.stderr.isatty()
        self.next = self.start + (0.2 if self.terminal else 10)

    def show(self, done: int, last: bool = False) -> None:
        now = time.monotonic()
        if now < self.next and not (last and self.terminal):
            return
        self.next = now + (0.2 if self.terminal else 10)
        left = (now - self.start) / max(done, 1) * (self.total - done)
        speed = done / max(now - self.start, 1e-6)
        line = f"{done:,} of {self.total:,} {self.unit} ({100 * done // max(self.total, 1)} %), {speed:,.0f} a second, {left:.0f} s left"
        print(f"\r{line}\033[K" + ("\n" if last else "") if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)


def run(main: Callable[[], None], values: flags.FlagValues, about: str) -> None:
    """Runs a script's main under its own flags: a user's mistake is one sentence and status 2, an interruption one and 130; no traceback.

    values: the script's flags, apart from absl's global ones, so that two scripts can be imported side by side; about: shown by --help.
    """
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(f"{about.strip()}\n{values.get_help().partition(':')[2]}")
        sys.exit(0)
    try:
        rest = values(sys.argv)
    except flags.Error as error:
        _leave(f"{' '.join(str(error).split())} (--help lists the flags)", 2)
    if len(rest) > 1:
        _leave(f"unexpected argument {printable(rest[1])!r}: flags are written --name=value (--help lists them)", 2)

    def terminated(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)
    try:
        main()
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted; nothing was left behind", 130)
    except OSError as error:
        _leave(f"{printable(os.fsdecode(error.filename)) + ': ' if error.filename else ''}{error.strerror or error}.", 2)


def _leave(message, status):
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
