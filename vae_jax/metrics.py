"""The log of a run, written by process 0: `metrics.jsonl`, TensorBoard events, the goodput account and the progress line.

`metrics.jsonl` holds one object a line: `step` and {path: number}. Times are under `perf/`, so that a resumed run's file less
`perf/` equals an unbroken run's. JSON has no NaN or infinity: they stand as the strings "nan", "inf" and "-inf", and `read`
gives them back as floats. An object store has no append: there the files are written locally and copied whole by `sync`.
TensorBoard events are encoded here (tensorflow/core/util/event.proto): the library for it loses up to two minutes to a SIGKILL.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import socket
import struct
import sys
import tempfile
import time

import jax
import numpy as np
from etils import epath

from vae_jax import checkpoint, seal
from vae_jax.config import UserError
from vae_jax.tfexample import _chunk, _varint, frame

LOST = ("start_up", "compile", "input_wait", "save", "evaluate", "replayed")  # what goodput does not count


class Writer:
    """metrics.jsonl and TensorBoard events of WORKDIR; on other processes than 0 every method does nothing.

    resume_step: lines at or after it are dropped, with a torn last line, in one atomic rewrite. `reached` is then the step
    after the last that earlier attempts had logged: steps below it are trained again.
    Call `sync` before a checkpoint is sealed, so that no restored step lacks its lines. Raises UserError when it cannot write.
    """

    def __init__(self, workdir, resume_step: int = 0):
        self.reached, self._lines = resume_step, None
        if jax.process_index():
            return
        self._remote = epath.Path(workdir) if seal.is_remote(workdir) else None
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="vae_jax_") if self._remote else workdir)
        boards = self._folder / "tensorboard"
        with self._told():
            boards.mkdir(parents=True, exist_ok=True)
            self._resume(resume_step)
            self._lines = open(self._folder / "metrics.jsonl", "ab")
            self._events = open(boards / f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}", "ab")
            self._event(0, _chunk(0x1A, b"brain.Event:2"))
            self._event(resume_step, _chunk(0x3A, b"\x08\x01"))  # a session's start: TensorBoard drops what earlier ones had from here on

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, and one event with a scalar for each value; in the kernel's hands, so safe from SIGKILL, when this returns."""
        if self._lines is None:
            return
        numbers = {path: float(value) for path, value in values.items()}
        line = {"step": int(step), **{path: v if math.isfinite(v) else str(v) for path, v in numbers.items()}}
        with self._told():
            self._lines.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._lines.flush()
            with np.errstate(over="ignore"):  # beyond float32 is infinite there
                scalars = [_chunk(0x0A, _chunk(0x0A, path.encode()), b"\x15", np.float32(v).tobytes()) for path, v in numbers.items()]
            self._event(step, _chunk(0x2A, *scalars))

    def sync(self) -> None:
        """Puts what was written on the disk; on an object store copies the files there, whole."""
        if self._lines is None:
            return
        with self._told():
            os.fsync(self._lines.fileno())
            os.fsync(self._events.fileno())
            if self._remote:
                for file in (self._lines, self._events):
                    target = self._remote / os.path.relpath(file.name, self._folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(pathlib.Path(file.name).read_bytes())

    def close(self) -> None:
        if self._lines is None:
            return
        self.sync()
        self._lines.close()
        self._events.close()
        self._lines = None
        if self._remote:
            shutil.rmtree(self._folder)

    def _resume(self, resume_step):
        source, target = (self._remote or self._folder) / "metrics.jsonl", self._folder / "metrics.jsonl"
        if not source.exists():
            return
        kept = []
        for number, line in enumerate(source.read_bytes().splitlines(keepends=True), 1):
            parsed = _parse(line)
            if parsed is not None and parsed["step"] < resume_step:
                kept.append(line)
            elif parsed is not None:
                self.reached = max(self.reached, parsed["step"] + 1)
            elif line.endswith(b"\n"):
                checkpoint.say(f"Line {number} of {source} is damaged and was left out.")
        partial = self._folder / "metrics.jsonl.partial"
        seal.write(partial, b"".join(kept))
        os.replace(partial, target)
        seal.sync(self._folder)

    def _event(self, step, content):
        event = b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(int(step)) + content
        self._events.write(frame(event)[0])
        self._events.flush()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"The log in {self._remote or self._folder} cannot be written ({error.strerror or error}): mend this and run the "
                            "same command again, it goes on from the last checkpoint.") from None


def read(workdir) -> list[dict]:
    """The lines of a run's metrics.jsonl, in order; a torn last line, of a run that was killed or still writes, is left out.

    [] without the file. Raises UserError naming a damaged line before the last.
    """
    path, found = epath.Path(workdir) / "metrics.jsonl", []
    if not path.exists():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        parsed = _parse(line)
        if parsed is not None:
            found.append(parsed)
        elif line.endswith(b"\n"):
            raise UserError(f"Line {number} of {path} is damaged: delete that line, or restore the file from a backup.")
    return found


def training_seconds(workdir) -> float:
    """Seconds a run spent in training steps that its result stands on, over all attempts; no start-up, compile, save or evaluation."""
    return sum(line.get("perf/train_s", 0.0) for line in read(workdir))


class Clock:
    """Where the time goes. Monotonic, so a corrected wall clock changes nothing; spans may nest, each counts its own time only.

    Start-up is what was in no span when the first step had been dispatched. After that, what is in no span of LOST counts as
    productive, unless the step had been logged by an earlier attempt (`resume`): then it is replayed.
    """

    def __init__(self, started: float | None = None, now=time.monotonic):
        """started: now() at the start of the command."""
        self._now = now
        self._started = now() if started is None else started
        self._spans = dict.fromkeys(LOST, 0.0)
        self._inner = []  # for each open span the seconds spent in spans inside it
        self._mark = None  # the account at the last report
        self._steps = self._examples = self._reached = 0
        self.rate = {}  # step_ms, examples_per_sec, input_wait_share between the last two reports
        self._paced = np.zeros(2)  # seconds with saves and evaluations, but without compiling, and steps; old ones fade

    def resume(self, reached: int) -> None:
        """Steps below `reached` had been trained and logged before (`Writer.reached`)."""
        self._reached = reached

    @contextlib.contextmanager
    def span(self, name: str):
        """Counts the time of its block under `name`: one of LOST, or any other for a share of the productive time."""
        begin = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = self._now() - begin
            self._spans[name] = self._spans.get(name, 0.0) + whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole

    def step(self, examples: int) -> None:
        """A train step of so many examples was dispatched. The first, which compiles, enters no rate."""
        if self._mark is None:
            self._spans["start_up"] += self._elapsed() - sum(self._spans.values())
            self._mark = self._account()
        else:
            self._steps += 1
            self._examples += examples

    def report(self, step: int) -> dict[str, float]:
        """{'perf/...': value} for the line of `step`: rates and train_s since the report before, other seconds since the start."""
        if self._mark is None:
            return {}
        window = {name: value - self._mark.get(name, 0.0) for name, value in self._account().items()}
        train = window["elapsed"] - window["compile"] - window["save"] - window["evaluate"]
        if step < self._reached:
            self._spans["replayed"] += train - window["input_wait"]
        if self._steps and train > 0:
            self.rate = {"step_ms": 1e3 * train / self._steps, "examples_per_sec": self._examples / train,
                         "input_wait_share": window["input_wait"] / train}
            self._paced = 0.7 * self._paced + (window["elapsed"] - window["compile"], self._steps)
        self._steps = self._examples = 0
        self._mark = self._account()
        seconds = {f"{name}_s": value for name, value in self._mark.items()}
        return {f"perf/{name}": value for name, value in {**self.rate, "goodput": self._share(), "train_s": train, **seconds}.items()}

    def remaining(self, steps: int) -> float | None:
        """Seconds that so many more steps will take at the recent pace, their saves and evaluations included; None before a report."""
        seconds, count = self._paced
        return float(steps * seconds / count) if count else None

    def goodput(self) -> str:
        """One phrase for the end of a run."""
        lost = ", ".join(f"{name.replace('_', ' ')} {self._spans[name]:.1f} s" for name in LOST if self._spans[name] >= 0.05)
        return f"{100 * self._share():.0f} % of {duration(self._elapsed())} went into training steps (the rest: {lost or 'nothing'})"

    def _elapsed(self):
        return self._now() - self._started

    def _account(self):
        return {"elapsed": self._elapsed(), **self._spans}

    def _share(self):
        elapsed = self._elapsed()
        return max(0.0, 1 - sum(self._spans[name] for name in LOST) / elapsed) if elapsed else 0.0


class Progress:
    """One line for the eye, on process 0: rewritten in place on a terminal, else a plain line at most every `quiet_s` seconds."""

    def __init__(self, steps: int, *, stream=None, quiet_s: float = 10.0, now=time.monotonic):
        self._steps, self._stream, self._quiet_s, self._now = steps, stream or sys.stderr, quiet_s, now
        self._active, self._terminal = jax.process_index() == 0, self._stream.isatty()
        self._open, self._last = False, -math.inf

    def show(self, step: int, loss: float, clock: Clock) -> None:
        """After the step number `step` (counted from 0), with the rates of the clock's last report."""
        done = step + 1
        parts = [f"step {done}/{self._steps}", f"{100 * done // self._steps} %", f"loss {loss:.5g}"]
        if clock.rate:
            parts += [f"{clock.rate['examples_per_sec']:,.0f} examples/s", f"input wait {100 * clock.rate['input_wait_share']:.0f} %"]
        remaining = clock.remaining(self._steps - done)
        if remaining:
            parts.append(f"ETA {duration(remaining)}")
        text = checkpoint.printable("  ".join(parts))
        if self._terminal and self._active:
            self._stream.write(f"\r\x1b[K{text[:shutil.get_terminal_size().columns - 1]}")
            self._stream.flush()
            self._open = True
        elif self._now() - self._last >= self._quiet_s or done >= self._steps:
            self._last = self._now()
            self._line(text)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """The losses of an evaluation (all values where none is called loss), as a line that stays."""
        losses = {path: v for path, v in values.items() if path.endswith("/loss")} or values
        self._line(checkpoint.printable(f"step {step}  " + "  ".join(f"{path.removeprefix('eval/')} {v:.5g}" for path, v in losses.items())))

    def close(self) -> None:
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _line(self, text):
        if self._active:
            self._stream.write("\r\x1b[K" * self._open + text + "\n")
            self._stream.flush()
            self._open = False


def duration(seconds: float) -> str:
    """12 s, 3 min 5 s, 2 h 3 min, 4 d 5 h."""
    seconds = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {name}"
    return f"{seconds} s"


def _parse(line: bytes) -> dict | None:
    """The values of a whole line, None for a damaged or torn one."""
    try:
        values = json.loads(line)
        if not line.endswith(b"\n") or type(values["step"]) is not int:
            return None
        return {path: v if path == "step" else float(v) for path, v in values.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
