"""Decodes untrusted files in worker processes: a crash, a hang or a memory bomb costs one file, never the preparation.

Each worker lives under a time limit a file and an address-space limit, which macOS does not enforce. Workers answer with JSON and raw
bytes, so nothing a broken decoder sends back is executed. Results come in the order of the tasks, whatever the number of workers and their
speed.
A file too large to be held in memory is decoded from the open file and answered in parts.
"""

import collections
import contextlib
import inspect
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

WINDOW = 256  # tasks handed out or finished ahead of the next one due
QUEUED, QUEUED_BYTES = 16, 1 << 15  # tasks and bytes sent ahead to a busy worker; less than its pipe holds, so sending never blocks
PIPE_BYTES = 1 << 18  # asked for, as macOS gives 8 KB: a worker whose answer waits and a parent whose task waits would wait for each other
HELD_BYTES = 1 << 26  # of results that wait for their turn; beyond it only the worker at the next file due is read
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
    """What became of a task: `reason` is '' for a kept file; `about` (JSON) and `blobs` are the decoder's; last: no further part follows."""

    reason: str
    about: dict
    blobs: list[bytes]
    last: bool = True


@contextlib.contextmanager
def open_file(path: bytes, identity: tuple[int, int, int]) -> Iterator[io.BufferedReader]:
    """A regular file open for reading, if it is still the one of the census. Raises Skip."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block, a link not lead away
    except OSError as error:
        raise Skip(f"cannot be opened: {error.strerror}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Skip("not a regular file")
        check_unchanged(file, identity)
        yield file


def check_unchanged(file: io.BufferedReader, identity: tuple[int, int, int]) -> None:
    if _identity(os.fstat(file.fileno())) != tuple(identity):
        raise Skip("changed while it was read")


def read_file(path: bytes, identity: tuple[int, int, int], limit: int) -> bytes:
    """A regular file's bytes, if it is still the one of the census before and after. Raises Skip."""
    with open_file(path, identity) as file:
        if identity[0] > limit:
            raise Skip(f"larger than {limit >> 20} MB")
        try:
            data = file.read()
        except OSError as error:
            raise Skip(f"cannot be read: {error.strerror}") from None
        check_unchanged(file, identity)
    if len(data) != identity[0]:
        raise Skip("changed while it was read")
    return data


def _identity(status):
    return status.st_size, status.st_mtime_ns, status.st_ino


def _answer(function, options, task, data, limit):
    """The answer to one task, in parts: (head, blobs); the last says so."""
    try:
        if not inspect.isgeneratorfunction(function):
            data = read_file(bytes.fromhex(task["path"]), task["identity"], limit) if data is None else data
            about, blobs = function(data, task["about"], options)
            yield {"about": about}, blobs
            return
        with contextlib.nullcontext(io.BytesIO(data)) if data is not None else open_file(bytes.fromhex(task["path"]), task["identity"]) as file:
            for about, blobs in function(file, task["about"], options):
                if blobs and data is None:
                    check_unchanged(file, task["identity"])
                yield {"about": about, "last": False}, blobs
        yield {}, []
    except Skip as skip:
        yield {"reason": str(skip)}, []
    except MemoryError:
        yield {"reason": "needs more memory than a file is allowed"}, []
    except Exception as error:  # decoders raise anything at bad input; the reason goes to the manifest
        yield {"reason": f"cannot be decoded ({type(error).__name__}: {error})"[:300]}, []


def limit_memory(memory_bytes: int) -> None:
    """Bounds this process's address space. Raises ValueError or OSError where the system refuses, but for macOS, where nothing can be had."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ValueError, OSError):
        if sys.platform != "darwin":
            raise


def _work(pipe, function, options, memory_bytes, file_bytes):
    """A worker's life: take a task, answer, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # some C libraries comment on every damaged file
    limit_memory(memory_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pipe.send_bytes(b"ready")
        while True:
            task = json.loads(pipe.recv_bytes())
            data = pipe.recv_bytes() if task["path"] is None else None
            for head, blobs in _answer(function, options, task, data, file_bytes):
                pipe.send_bytes(json.dumps({**head, "sizes": [len(b) for b in blobs]}).encode())
                if blobs:
                    pipe.send_bytes(b"".join(blobs))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone


class _Worker:
    """A process, its pipe and the tasks sent to it, of which it is at the first."""

    def __init__(self, context, arguments):
        self.pipe, child = context.Pipe()
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
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
        """The first queued task's number and its Result or a part of it, or None for the sign that the worker is ready."""
        if not self.ready:
            self.ready = self.pipe.recv_bytes(5) == b"ready"
            return None
        head = json.loads(self.pipe.recv_bytes())
        data = self.pipe.recv_bytes(sum(head["sizes"])) if head["sizes"] else b""
        ends = list(itertools.accumulate(head["sizes"]))
        blobs = [data[end - size:end] for size, end in zip(head["sizes"], ends)]
        number, task = self.queue[0]
        result = Result(head.get("reason", ""), head.get("about", {}), blobs, head.get("last", True))
        if result.last:
            self.queue.popleft()
            self.bytes -= _size(task)
        self.deadline = time.monotonic() + seconds
        return number, result

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

    A generator function is given the open binary file instead, of any size, and yields (about, blobs) in parts, each within `seconds`;
    ({}, []) is a sign of life. Each part is a Result, and an empty one with `last` ends the file. It should judge the whole file before it
    yields blobs: a file that fails after some were handed on ends in a Result with a reason, for the caller to make good.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread would reserve address space
    context = multiprocessing.get_context("spawn")
    arguments = (function, options, memory_mb << 20, file_mb << 20)
    tasks, waiting, done, given, due, exhausted, held = iter(tasks), collections.deque(), collections.defaultdict(collections.deque), 0, 0, False, 0
    crew = []

    def put(number, result):
        nonlocal held
        if result.reason:  # what was not yet handed on of this file goes with it
            held -= sum(_weight(part) for part in done.pop(number, ()))
        if result.reason or result.last or result.about or result.blobs:
            done[number].append(result)
            held += _weight(result)

    def take(worker):
        answer = worker.receive(seconds)
        if answer:
            put(*answer)

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
            put(worker.queue.popleft()[0], Result(reason or _death(code), {}, []))
            waiting.extendleft(reversed(worker.queue))
        crew[crew.index(worker)] = _Worker(context, arguments)

    def listened():
        """The workers whose answers are read now; the others wait at their full pipes."""
        owner = next((w for w in crew if any(number == due for number, _ in w.queue)), None)
        return [w for w in crew if w is owner or owner is None or held < HELD_BYTES or not w.ready]

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
                                put(given, Result(str(task.data), {}, []))
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
            while done.get(due):
                result = done[due].popleft()
                held -= _weight(result)
                if result.last:
                    del done[due]
                    due += 1
                yield result
            if exhausted and due == given:
                return
            heard = listened()
            soonest = min((w.deadline for w in heard if w.queue or not w.ready), default=time.monotonic())
            ready = multiprocessing.connection.wait([w.pipe for w in heard], max(0.0, soonest - time.monotonic()) + 0.01)
            for worker in heard:
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


def _weight(result):
    return 256 + sum(map(len, result.blobs))
