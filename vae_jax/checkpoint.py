"""Checkpoints that never lie: orbax writes the arrays, our seal (seal.py) says whether they are whole.

Orbax itself notices neither a flipped bit in an array nor a changed dtype, takes any numeric folder for a step, and falls back
to nothing. So a step is the folder FOLDER/STEP with orbax's files under `state/` and a seal beside them, which also holds the
loop's meta. On a local disk it is built in `saving.STEP` (orbax's files, seal) and then renamed: a numeric folder was whole
once, and one without a valid seal is damaged or not ours. Object stores have no rename: there the folder has its final name
from the start, the seal is written last, and a folder without one was never finished.
Orbax's checkpointer is used below its CheckpointManager, whose list of steps in memory names unfinished and failed saves.
The orbax import (0.3 s) waits for the first save or restore.
"""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vae_jax import seal
from vae_jax.config import UserError

HEADROOM = 1.2  # free space asked for, in sizes of the state
_LOST = "Stopped, because another process of this run was lost; start all of them again by the same command: it goes on from the last checkpoint."
_GARBAGE = ("saving.", "replaced.", "deleting.")  # folders of ours that never count


def lock(workdir):
    """Takes WORKDIR for this run: a handle to be used with `with`; closing it, or the end of the process, however it ends, frees it.

    The file WORKDIR/lock holds pid and host under an flock. Only process 0 locks, so call it after `jax.distributed.initialize`.
    On an object store (gs://) there is no lock: two runs in one folder there are the user's care.
    Raises UserError naming the pid of a run that holds the folder, or saying why the folder cannot be written.
    """
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if seal.is_remote(workdir) or jax.process_index():
            return contextlib.nullcontext()
        handle = open(workdir / "lock", "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{workdir} cannot be used as a run folder ({error.strerror}); give another --workdir.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read(300).strip()
        handle.close()
        raise UserError(f"{workdir} is in use by {holder or 'another process'}; wait for it, stop it, or give another --workdir.") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            handle.close()
            raise UserError(f"{workdir}/lock cannot be locked ({error.strerror}); give another --workdir.") from None
        say(f"The file system of {workdir} has no locks ({error.strerror}): nothing keeps a second run out of this folder.")
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    handle.flush()
    return handle


class Checkpoints:
    """The sealed steps of one folder, local or gs://, and at most one save under way.

    Opening one changes nothing on disk, so a folder may be read while its run goes on. Several processes share one file system:
    all call `save`, `finish` and `restore` in the same order; process 0 decides, seals and deletes.
    """

    def __init__(self, folder, keep: int = 1):
        """keep: newest sealed steps kept, at least 1."""
        self.folder = epath.Path(folder)
        self.keep = keep
        self._checkpointer = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._pending = None  # (step, future) of the save under way
        self._sealed = []  # steps sealed since poll or finish last told
        self._cleaned = False

    def steps(self) -> list[int]:
        """Steps that carry a readable seal, ascending. Their files are not read: `latest` and `restore` do that."""
        return [step for step in seal.numbers(self.folder) if not isinstance(seal.read(self.folder / str(step), step), str)]

    def latest(self) -> int | None:
        """As `newest` of this folder."""
        return newest(self.folder)

    def save(self, step: int, state, meta: dict) -> None:
        """Begins to save; returns when the arrays are copied off the devices. A step that exists and verifies is left as it is.

        state: pytree of jax arrays, global over all processes, typed keys allowed. meta: plain JSON without NaN or infinity.
        Nothing is saved until `poll` or `finish` returns the step: only then may "saved" be said.
        Raises UserError if the disk is too full or the copy fails (older steps stay), or if the save before this one failed.
        """
        self._wait()
        leaves = [[_path(keys), str(leaf.dtype), list(leaf.shape)] for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]]
        body = {"step": int(step), "meta": meta, "leaves": leaves}
        if not isinstance(meta, dict) or json.loads(seal.dump(meta)) != meta:
            raise ValueError("meta must be a dict that JSON gives back unchanged: string keys, lists, no NaN or infinity")
        if len(seal.dump(body)) > seal.LIMIT // 2:
            raise ValueError(f"meta and {len(leaves)} leaf names take more than {seal.LIMIT // 2} bytes of JSON")
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if not _first_process(lambda: self._prepare(step, size)):
            return
        ocp = _orbax()
        try:
            if self._checkpointer is None:
                options = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name)
                handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
                self._checkpointer = ocp.AsyncCheckpointer(handler, multiprocessing_options=options)
            self._checkpointer.save(os.fspath(self._building(step) / "state"), args=ocp.args.StandardSave(state))
        except Exception as error:  # orbax and tensorstore raise a dozen types, bare Exception among them
            raise self._failed(step, error) from error
        self._pending = step, self._worker.submit(self._complete, self._checkpointer, step, body)

    def poll(self) -> list[int]:
        """Steps sealed since poll or finish last returned them; never blocks. On other processes than 0 always empty."""
        if jax.process_index() == 0 and self._pending and self._pending[1].done():
            self._settle()
        return self._told()

    def finish(self) -> list[int]:
        """Waits for the save under way; returns the newly sealed steps. To be called before the process ends.

        Raises UserError if the save failed: its files are removed, older steps are intact, and a later save may be tried.
        """
        self._wait()
        return self._told()

    def restore(self, target, step: int | None = None):
        """(state, meta, step) of the newest step that verifies, or of `step`; None if the folder holds no steps at all.

        target: pytree of ShapeDtypeStruct with shardings; any number of devices and processes. Each damaged step that is
        passed over is named in one sentence. Raises UserError if steps exist but none verifies, if `step` does not, or
        naming the first leaf whose presence, dtype or shape differs from the target.
        """
        self._wait()
        step = _first_process(lambda: _choose(self.folder, step))
        if step < 0:
            return None
        path = self.folder / str(step)
        sealed = seal.read(path, step)
        if isinstance(sealed, str):
            raise UserError(f"Process {jax.process_index()} cannot read {path} ({sealed}): all processes need the same file system.")
        _compare(path, sealed["leaves"], target)
        ocp = _orbax()
        state = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(os.fspath(path / "state"), args=ocp.args.StandardRestore(target))
        return state, sealed["meta"], step

    def _building(self, step):
        return self.folder / str(step) if seal.is_remote(self.folder) else self.folder / f"saving.{step}"

    def _prepare(self, step, size) -> int:
        """1 when the folder is ready for orbax, 0 when the step is there already."""
        final, building = self.folder / str(step), self._building(step)
        if not seal.damage(final, step):
            return 0
        try:
            if not self._cleaned:
                _remove_garbage(self.folder)
                self._cleaned = True
            if building.exists():
                building.rmtree()
            self.folder.mkdir(parents=True, exist_ok=True)
            if not seal.is_remote(self.folder):
                free, needed = shutil.disk_usage(self.folder).free, int(HEADROOM * size)
                if free < needed:
                    raise UserError(f"Saving step {step} needs {_megabytes(needed)} free in {self.folder}, but {_megabytes(free)} are left; "
                                    "older checkpoints are intact: make room and run the same command again.")
            building.mkdir()
        except OSError as error:
            raise self._failed(step, error) from None
        return 1

    def _complete(self, checkpointer, step, body):
        """Runs in the background: orbax's wait, then on process 0 fsync, seal, rename, retention."""
        checkpointer.wait_until_finished()
        if jax.process_index():
            return
        building, final = self._building(step), self.folder / str(step)
        seal.put(building, body)
        if building != final:
            if final.exists():
                seal.rename(final, self.folder / f"replaced.{step}")
            seal.rename(building, final)
            seal.sync(self.folder)
        self._retain(step)

    def _retain(self, step):
        """Deletes sealed steps but the newest `keep` up to `step`; later ones are damaged or of a future that a resume undid."""
        sealed = self.steps()
        try:
            for old in set(sealed) - set([s for s in sealed if s <= step][-self.keep:]):
                if seal.is_remote(self.folder):
                    (self.folder / str(old) / seal.NAME).unlink()
                else:
                    seal.rename(self.folder / str(old), self.folder / f"deleting.{old}")
            _remove_garbage(self.folder)
        except OSError as error:  # the new step is safe, and the next save tries again
            say(f"Older checkpoints in {self.folder} could not be deleted ({error.strerror}).")

    def _settle(self):
        step, future = self._pending
        try:
            future.result()
        except Exception as error:  # as in save: anything that kept this step from being sealed
            raise self._failed(step, error) from error
        self._pending = None
        self._sealed.append(step)

    def _wait(self):
        def sealed_by_first():
            if self._pending:
                self._settle()
            return 0

        if jax.process_index() and self._pending:
            self._settle()
        _first_process(sealed_by_first)

    def _told(self):
        told, self._sealed = self._sealed, []
        return told if jax.process_index() == 0 else []

    def _failed(self, step, error) -> UserError:
        """Clears what a failed save left, so that the disk is no fuller than before, and drops orbax's state of it."""
        self._pending = self._checkpointer = None
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return UserError(_LOST)
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # the sentence below matters more, and the next save clears again
                self._building(step).rmtree()
        reason = "no space left on the disk" if _disk_full(error) else _short(error)
        return UserError(f"Step {step} could not be saved in {self.folder} ({reason}); older checkpoints are intact: "
                         "mend this and run the same command again.")


def newest(folder) -> int | None:
    """The newest step of a folder whose seal and files verify, None without one. Reads that step whole."""
    folder = epath.Path(folder)
    return next((step for step in reversed(seal.numbers(folder)) if not seal.damage(folder / str(step), step)), None)


def read_tree(folder, only: tuple[str, ...] = ("params", "variables"), step: int | None = None) -> tuple[dict, int]:
    """(tree of host NumPy arrays, step): the parts of a sealed step below the paths `only`, such as 'params/encoder'.

    Takes the newest step that verifies, or `step`. The tree is of dicts, lists and None, whatever classes the state had; a
    path that the step does not have is absent. Raises UserError if the folder holds no step that verifies.
    """
    folder = epath.Path(folder)
    step = _choose(folder, step)
    if step < 0:
        raise UserError(f"{folder} holds no checkpoint: train that run first, or name another run folder.")
    path, ocp = os.fspath(folder / str(step) / "state"), _orbax()
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = _below(reader.metadata(path).item_metadata.tree, [prefix.split("/") for prefix in only])
    if not tree:
        return {}, step
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(item=tree, restore_args=kinds, partial_restore=True)), step


def _below(tree, prefixes):
    """The parts of nested dicts below the paths `prefixes`."""
    if [] in prefixes or not isinstance(tree, dict):
        return tree if [] in prefixes else {}
    found = {name: _below(node, [prefix[1:] for prefix in prefixes if prefix[0] == name]) for name, node in tree.items()}
    return {name: node for name, node in found.items() if [name] in prefixes or node}


def _choose(folder, step) -> int:
    """The step to restore: `step` if it verifies, else the newest that does; -1 if there is none to begin with."""
    numbers = seal.numbers(folder)
    if step is not None:
        trouble = seal.damage(folder / str(step), step) if step in numbers else f"there is no such folder; steps there are {numbers}"
        if trouble:
            raise UserError(f"Checkpoint {folder / str(step)} cannot be used: {trouble}.")
        return step
    if seal.is_remote(folder):
        numbers = [n for n in numbers if (folder / str(n) / seal.NAME).exists()]
    for number in reversed(numbers):
        trouble = seal.damage(folder / str(number), number)
        if not trouble:
            return number
        if not (folder / str(number)).exists():  # its run went on meanwhile and has a newer one
            return _choose(folder, None)
        say(f"Checkpoint {folder / str(number)} is damaged and passed over: {trouble}; delete that folder, or restore it from a backup.")
    if numbers:
        raise UserError(f"{folder} holds {len(numbers)} checkpoint{'s' * (len(numbers) > 1)}, and none is whole: restore one from a backup, "
                        "or delete the folder to begin again.")
    return -1


def _compare(path, leaves, target):
    saved = {"/".join(keys): f"{dtype}{shape}" for keys, dtype, shape in leaves}
    wanted = {"/".join(_path(keys)): f"{leaf.dtype}{list(leaf.shape)}" for keys, leaf in jax.tree_util.tree_flatten_with_path(target)[0]}
    for name in sorted(set(saved) | set(wanted)):
        if saved.get(name) != wanted.get(name):
            raise UserError(f"Checkpoint {path} has {name} as {saved.get(name, 'nothing')}, but this run wants {wanted.get(name, 'nothing')}: "
                            "the model has changed; go on with the code and configuration it was trained with, or give a new --workdir.")


def _first_process(answer) -> int:
    """answer() of process 0, a small integer, on every process; its UserError too."""
    if jax.process_count() == 1:
        return answer()
    value, error = 0, None
    if jax.process_index() == 0:
        try:
            value = answer()
        except UserError as caught:
            value, error = -2, caught
    try:
        value = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
    except jax.errors.JaxRuntimeError:
        raise UserError(_LOST) from None
    if value == -2:
        raise error or UserError("Process 0 stopped this run: its message says why.")
    return value


@functools.cache
def _orbax():
    """The library, kept from writing its tracebacks on the screen: what fails there is raised here as one sentence."""
    import orbax.checkpoint

    hook = sys.unraisablehook
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    # A failed save closes its event loop while other files are still being written; each of them then complains.
    sys.unraisablehook = lambda failure: None if str(failure.exc_value) == "Event loop is closed" else hook(failure)
    return orbax.checkpoint


def _path(keys) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in keys]


def _remove_garbage(folder):
    if folder.is_dir() and not seal.is_remote(folder):
        for path in folder.iterdir():
            if path.name.startswith(_GARBAGE):
                path.rmtree()
    elif folder.is_dir():
        for number in seal.numbers(folder):
            if not (folder / str(number) / seal.NAME).exists():
                (folder / str(number)).rmtree()


def _disk_full(error) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _short(error) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _megabytes(size) -> str:
    return f"{size / 1e6:.1f} MB"


def printable(text: str) -> str:
    """Control characters, which names may contain and a terminal would obey, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(sentence: str):
    print(printable(sentence), file=sys.stderr, flush=True)
