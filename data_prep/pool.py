"""Decodes untrusted files in worker processes: a crash, a hang or a memory bomb costs one file, never the preparation.

Each worker lives under an address-space limit and a time limit a file. Workers answer with JSON and raw bytes, so nothing a
broken decoder sends back is executed. Results come in the order of the tasks, whatever the number of workers and their speed.
"""

import collections
import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

WINDOW = 256  # tasks handed out or finished ahead of the next one due
QUEUED, QUEUED_BYTES = 16, 1 << 15  # tasks and bytes sent ahead to a busy worker; less than a pipe holds, so sending never blocks
START_SECONDS = 60
GONE = (EOFError, OSError, ValueError, KeyError, IndexError, TypeError)  # what reading from a dead or mad worker raises


class Skip(Exception):
    """Raised by a decoder: this file is left out, for the reason given."""


class Task(NamedTuple):
    """One file to decode: its bytes, or the path and (size, mtime_ns, inode) it had in the census; `about` is JSON for the decoder.

    A Skip in place of the bytes becomes the result, undecoded.
    """

    data: bytes | Skip | None
    path: bytes | None
    identity: tuple[int, int, int] | None
    about: dict


class Result(NamedTuple):
    """What became of a task: `reason` is '' for a kept file; `about` (JSON) and `blobs` are the decoder's."""

    reason: str
    about: dict
    blobs: list[bytes]


def read_file(path: bytes, identity: tuple[int, int, int], limit: int) -> bytes:
    """A regular file's bytes, if it is still the one of the census before and after. Raises Skip."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block, a link not lead away
    except OSError as error:
        raise Skip(f"cannot be opened: {error.strerror}") from None
    with open(fd, "rb", buffering=0) as file:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise Skip("not a regular file")
        try:
            data = b"".join(iter(lambda: file.read(1 << 20), b"")) if before.st_size <= limit else b""
        except OSError as error:
            raise Skip(f"cannot be read: {error.strerror}") from None
        after = os.fstat(fd)
    if not tuple(identity) == _identity(before) == _identity(after) or after.st_size <= limit and len(data) != after.st_size:
        raise Skip("changed while it was read")
    if before.st_size > limit:
        raise Skip(f"larger than {limit >> 20} MB")
    return data


def _identity(status):
    return status.st_size, status.st_mtime_ns, status.st_ino


def _answer(function, options, task, data, limit):
    try:
        if data is None:
            data = read_file(bytes.fromhex(task["path"]), task["identity"], limit)
        about, blobs = function(data, task["about"], options)
        return {"reason": "", "about": about}, blobs
    except Skip as skip:
        return {"reason": str(skip)}, []
    except MemoryError:
        return {"reason": "needs more memory than a file is allowed"}, []
    except Exception as error:  # decoders raise anything at bad input; the reason goes to the manifest
        return {"reason": f"cannot be decoded ({type(error).__name__}: {error})"[:300]}, []


def _work(pipe, function, options, memory_bytes, file_bytes):
    """A worker's life: take a task, answer, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pipe.send_bytes(b"ready")
        while True:
            task = json.loads(pipe.recv_bytes())
            data = pipe.recv_bytes() if task["path"] is None else None
            head, blobs = _answer(function, options, task, data, file_bytes)
            pipe.send_bytes(json.dumps({**head, "sizes": [len(b) for b in blobs]}).encode())
            if blobs:
                pipe.send_bytes(b"".join(blobs))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone


class _Worker:
    """A process, its pipe and the tasks sent to it, of which it is at the first."""

    def __init__(self, context, arguments):
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, *arguments), daemon=True)
        # The child inherits the mask: a Ctrl-C while it is still importing is the parent's affair.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        child.close()
        self.ready, self.queue, self.bytes, self.deadline = False, collections.deque(), 0, time.monotonic() + START_SECONDS

    def has_room(self, task):
        return self.ready and (not self.queue or len(self.queue) < QUEUED and self.bytes + _size(task) <= QUEUED_BYTES)

    def send(self, number, task, seconds):
        if not self.queue:
            self.deadline = time.monotonic() + seconds
        path = task.path.hex() if task.data is None else None
        self.pipe.send_bytes(json.dumps({"path": path, "identity": task.identity, "about": task.about}).encode())
        if task.data is not None:
            self.pipe.send_bytes(task.data)
        self.queue.append((number, task))
        self.bytes += _size(task)

    def receive(self, seconds):
        """The first queued task's number and Result, or None for the sign that the worker is ready."""
        if not self.ready:
            self.ready = self.pipe.recv_bytes(5) == b"ready"
            return None
        head = json.loads(self.pipe.recv_bytes())
        data = self.pipe.recv_bytes(sum(head["sizes"])) if head["sizes"] else b""
        ends = list(itertools.accumulate(head["sizes"]))
        blobs = [data[end - size:end] for size, end in zip(head["sizes"], ends)]
        number, task = self.queue.popleft()
        self.bytes -= _size(task)
        self.deadline = time.monotonic() + seconds
        return number, Result(head["reason"], head.get("about", {}), blobs)

    def late(self):
        return (self.queue or not self.ready) and time.monotonic() > self.deadline and not self.pipe.poll()

    def stop(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def _size(task):
    return len(task.data or b"") + 1024


def _death(code):
    return f"decoder crashed ({signal.Signals(-code).name})" if code < 0 else f"decoder crashed (exit status {code})"


def decode(tasks: Iterable[Task], function: Callable, options: dict, *, workers: int, seconds: float = 30, memory_mb: int = 3072,
           file_mb: int = 256) -> Iterator[Result]:
    """Yields a Result for every task, in order.

    function(data: bytes, about: dict, options: dict) -> (about: dict of JSON values, list of bytes) must be importable by name; it
    raises Skip, or anything, to leave the file out. seconds and memory_mb bound one file (memory: the worker's whole address
    space), file_mb its size. Raises RuntimeError if workers cannot start at all.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread would reserve address space
    context = multiprocessing.get_context("spawn")
    arguments = (function, options, memory_mb << 20, file_mb << 20)
    tasks, waiting, done, given, due, exhausted = iter(tasks), collections.deque(), {}, 0, 0, False
    crew = []

    def take(worker):
        answer = worker.receive(seconds)
        if answer:
            done[answer[0]] = answer[1]

    def replace(worker, reason=None):
        """The task a dead or late worker was at is skipped, those sent ahead go to another."""
        with contextlib.suppress(*GONE):  # what it still said
            while worker.pipe.poll():
                take(worker)
        if reason is None:
            worker.process.join(1)  # its own exit status says more than our kill
        code = worker.stop()
        if not worker.ready:
            raise RuntimeError(f"a decoding process ended before it was ready (exit status {code})")
        if worker.queue:
            done[worker.queue.popleft()[0]] = Result(reason or _death(code), {}, [])
            waiting.extendleft(reversed(worker.queue))
        crew[crew.index(worker)] = _Worker(context, arguments)

    try:
        crew += [_Worker(context, arguments) for _ in range(workers)]
        while True:
            for worker in list(crew):
                while worker in crew:
                    if not waiting and not exhausted and given < due + WINDOW:
                        task = next(tasks, None)
                        exhausted = task is None
                        if not exhausted:
                            if isinstance(task.data, Skip):
                                done[given] = Result(str(task.data), {}, [])
                            else:
                                waiting.append((given, task))
                            given += 1
                    if not waiting or not worker.has_room(waiting[0][1]):
                        break
                    try:
                        worker.send(*waiting[0], seconds)
                        waiting.popleft()
                    except OSError:
                        replace(worker)
            while due in done:
                yield done.pop(due)
                due += 1
            if exhausted and due == given:
                return
            soonest = min((w.deadline for w in crew if w.queue or not w.ready), default=time.monotonic())
            ready = multiprocessing.connection.wait([w.pipe for w in crew], max(0.0, soonest - time.monotonic()) + 0.01)
            for worker in list(crew):
                try:
                    if worker.pipe in ready:
                        take(worker)
                except GONE:
                    replace(worker)
                else:
                    if worker.late():
                        replace(worker, f"decoder took longer than {seconds:g} s")
    finally:
        for worker in crew:
            worker.stop()
