"""What makes a data_prep module a script: its manifest, its progress line, and its manners at the command line."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from data_prep.intake import Census, Item, printable, text
from vae_jax.config import UserError


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
