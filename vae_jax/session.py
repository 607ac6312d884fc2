"""What a run is to the code around the loop: its stored data description, its weights opened for use, and the wish to leave."""

import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vae_jax import checkpoint, evaluate, fronts, records, rolls, tasks
from vae_jax import config as configs
from vae_jax import data as datas
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import Config, UserError

BASELINE, BASELINE_BYTES = 60_000, 1 << 30  # training examples that linear baselines are fitted on, and of their pictures


class Leaving:
    """The wish to leave: SIGTERM or Ctrl-C. `now()` is asked at every step and every batch of evaluation or sampling.

    One process just remembers the signal. Several must leave at the same point, so there jax's preemption service takes
    SIGTERM and agrees on it, and Ctrl-C is passed on to it as SIGTERM; `now()` must be asked equally often everywhere.
    A second Ctrl-C leaves at once. Use as a context: the handlers go back at its end.
    """

    def __enter__(self):
        self.asked, self.agreed, self.interrupts, self.several = 0, False, 0, jax.process_count() > 1
        handlers = {signal.SIGINT: self._interrupt} | ({} if self.several else {signal.SIGTERM: self._terminate})
        self.old = {s: signal.signal(s, h) for s, h in handlers.items()}
        return self

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def now(self) -> bool:
        self.asked += 1
        if self.several:
            self.agreed = self.agreed or multihost_utils.reached_preemption_sync_point(self.asked)
        return self.agreed

    def _terminate(self, *_):
        self.agreed = True

    def _interrupt(self, *_):
        self.interrupts += 1
        if self.interrupts > 1:
            os._exit(130)
        print("\nCtrl-C: saving and leaving; once more leaves at once.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


class Session(NamedTuple):
    """A trained run, opened for use. spec describes what batches hold; params are the averaged ones where an average is kept."""

    workdir: epath.Path
    config: Config
    spec: records.Spec
    task: tasks.Task
    mesh: Any
    params: dict
    variables: dict
    step: int


def folder(workdir: str) -> epath.Path:
    """The run folder as a path that stays right: orbax takes absolute ones only."""
    return epath.Path(workdir if "://" in str(workdir) else os.path.abspath(workdir))


def write_json(path: epath.Path, value) -> None:
    """Writes a small JSON file, as `write_bytes` does."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def write_npz(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays compressed, as `write_bytes` does."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_bytes(path, data.getvalue())


def write_bytes(path, data: bytes) -> None:
    """Writes a file whole or not at all, on any file system."""
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(data)
    partial.replace(path)


def same_spec(workdir: epath.Path, spec: records.Spec) -> records.Spec:
    """The data description `spec`. Raises UserError if WORKDIR was started with other data: their digest tells, wherever they lie."""
    path = workdir / "spec.json"
    if configs.is_run(workdir) and path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(spec.to_dict())):
        raise UserError(f"the data set is not the one {workdir} was started with ({path} differs from it): give the old data, or another --workdir.")
    return spec


def store(workdir: epath.Path, config: Config, spec: records.Spec) -> None:
    """Keeps configuration and data description in the run folder: every other verb reads them there, and sampling needs no data."""
    if meshes.is_main():
        write_json(workdir / "spec.json", spec.to_dict())
        write_json(workdir / "config.json", configs.to_dict(config))  # last: without it there is no run here yet


def open_run(workdir: str, which: str = "best") -> Session:
    """The run in WORKDIR at its best checkpoint (else its newest), its newest, or a step number. Raises UserError."""
    config, workdir = configs.read(workdir), folder(workdir)
    try:
        spec = datas.cropped(records.Spec.from_dict(json.loads((workdir / "spec.json").read_text())), config.data.crop)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{workdir / 'spec.json'} is missing or damaged ({error}). Copy it from a backup, or train into a new --workdir.") from None
    # Trained on four devices, opened on one: the count is the training's.
    task, mesh = tasks.get(config, spec), meshes.make(min(config.run.devices, jax.device_count()) if jax.process_count() == 1 else 0)
    checkpoints, step = _pick(workdir, which)
    tree, step = checkpoint.read_tree(checkpoints, ("params", "variables", "ema"), step)
    shapes = jax.eval_shape(task.init, jax.random.key(0), example(spec, 1))  # a player may have no parameters, which leave no trace in a file
    params = {player: tree.get("ema", {}).get(player) or tree["params"].get(player, {}) for player in shapes[0]}
    variables = {player: tree.get("variables", {}).get(player, {}) for player in shapes[1]}
    if found := _differs(shapes[0], params):
        raise UserError(f"{workdir} was trained by another version of this code: {found}. Take the version it was trained with, or train it again.")
    return Session(workdir, config, spec, task, mesh, *jax.device_put((params, variables), meshes.replicated(mesh)), step)


def example(spec: records.Spec, batch: int) -> dict[str, np.ndarray]:
    """A batch of zeros with the fields and shapes of the data, which must be fixed (`data.cropped`)."""
    fields = {name: np.zeros((batch, *f.shape), f.dtype) for name, f in spec.fields.items() if f.dtype != "str"}
    return fields | {"index": np.zeros(batch, np.int32)}


def sources(run: Session, roles=("train", "validation", "test")) -> dict:
    """{role: Source} of the splits the run's configuration names. Raises UserError where the data is not what the run was trained on."""
    data = run.config.data
    found = {role: datas.open_source(data, role) for role in roles if getattr(data, role)}
    if any(source.split.digest != run.spec.digest for source in found.values()):
        raise UserError(f"{data.dir} holds other data than {run.workdir} was trained on (the digest in its spec.json differs): prepare the same data "
                        "there again, or give another data set with --data where the verb has it.")
    return found


def seen(run: Session, source: datas.Source, examples: int, batch: int = 500) -> np.ndarray:
    """What the model sees of at most `examples` evenly spaced rows of a split: stored pictures and rolls as they are (uint8), else the front's
    [n, h, w, c]."""
    if run.task.front.kind in ("image", "roll"):
        return stored(run, source.read(datas.spaced(len(source), examples)))
    analyse = lambda params, variables, rows: run.task.front.analyse(rows)
    return evaluate.collect(analyse, {}, {}, source, run.mesh, batch, examples)


def baseline(run: Session) -> int:
    """How many training examples linear baselines are fitted on: BASELINE, fewer where they would not fit in BASELINE_BYTES."""
    return max(2, min(BASELINE, BASELINE_BYTES // (4 * math.prod(run.task.front.shape))))


def stored(run: Session, batch) -> np.ndarray:
    """The pictures or rolls of a batch, [n, h, w, c] with the values they are stored with."""
    if run.task.front.kind == "image":
        return batch["image"]
    return fronts.cells(batch["roll"], rolls.pitches(rolls.grid(run.spec.facts)), np)


def _pick(workdir, which):
    """(folder of checkpoints, step or None for the newest)."""
    if which == "best":
        found = {checkpoint.newest(p): p for p in sorted(workdir.iterdir()) if p.name.startswith("best_")}
        if None in found:
            checkpoint.say(f"{found.pop(None)} holds no whole checkpoint and is passed over.")
        if found:
            return found[max(found)], max(found)
    if which in ("best", "newest"):
        return workdir / "checkpoints", None
    if not which.isdigit():
        raise UserError(f"--checkpoint={which} should be best, newest, or a step number.")
    apart = [p for p in sorted(workdir.iterdir()) if p.name.startswith(("best_", "end_")) and checkpoint.newest(p) == int(which)]
    return (apart or [workdir / "checkpoints"])[0], int(which)


def start_from(state: updates.TrainState, config: Config, spec: records.Spec, workdir: epath.Path, mesh) -> updates.TrainState:
    """After init, never on resume: players named in config.start_from take the weights of other runs.

    The runs' configurations are copied into WORKDIR, so that the new run stands alone. Raises UserError for players of other shapes, for others than
    those that made the data (`spec`), and where a player that no move trains would keep its random weights.
    """
    params, variables, ema, origins = dict(state.params), dict(state.variables), dict(state.ema), configs.origins(config)
    idle = [p for p in params if p not in state.opt and p not in origins and jax.tree.leaves((params[p], variables.get(p, {})))]
    if idle:
        raise UserError(f"this run does not train {', '.join(idle)}, and config.start_from does not say whose weights to take: give "
                        f"--config.start_from={','.join(f'{p}=RUN' for p in idle)}, the folder of the run that trained them.")
    for player, origin in origins.items():
        if player not in params:
            raise UserError(f"config.start_from names player {player!r}, but this task's players are {', '.join(params)}.")
        other = open_run(origin)
        if player not in other.params:
            raise UserError(f"config.start_from: {origin} has no player {player!r}; it has {', '.join(other.params)}.")
        _same_autoencoder(config.model, other.config.model, origin)
        ours, theirs = ((r.params[player], r.variables.get(player, {})) for r in (state, other))
        if found := _differs(ours[0], theirs[0]) or _differs(ours[1], theirs[1]):
            raise UserError(f"config.start_from: of {player} in {origin}, {found}; use the same config.model.")
        if spec.facts.get("players", {}).get(player, digest(*theirs)) != digest(*theirs):
            raise UserError(f"config.start_from: {config.data.dir} was made with other weights of {player} than those of {origin} at step "
                            f"{other.step}: make the data set again with that run, or start from the one that made it.")
        params[player] = _copy(theirs[0], mesh)
        if player in ema:
            ema[player] = _copy(theirs[0], mesh)
        if player in variables:
            variables[player] = _copy(theirs[1], mesh)
        if meshes.is_main():
            write_json(workdir / f"start_from_{player}.json", configs.to_dict(other.config))
    return state.replace(params=params, variables=variables, ema=ema)


def _same_autoencoder(ours, theirs, origin) -> None:
    """Raises UserError where a prior and the autoencoder whose weights it takes have other settings: arrays of one shape may mean other things."""
    wanted, had = getattr(ours, "autoencoder", None), getattr(theirs, "autoencoder", theirs)
    if wanted is None or type(wanted) is not type(had):
        return
    for field in dataclasses.fields(wanted):
        here, there = getattr(wanted, field.name), getattr(had, field.name)
        if here != there:
            raise UserError(f"config.start_from: {origin} was trained with config.model.{field.name}={there!r}, and "
                            f"config.model.autoencoder.{field.name} is {here!r} here: give --config.model.autoencoder.{field.name}={there}.")


def digest(*trees) -> str:
    """Of all arrays of the trees, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _copy(tree, mesh):
    return jax.device_put(jax.tree.map(np.array, tree), meshes.replicated(mesh))


def _differs(ours, theirs) -> str:
    """The first array that differs in shape between two trees, in words."""
    a, b = ({jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(t)} for t in (ours, theirs))
    return next((f"{name} has shape {b.get(name)} there, but {a.get(name)} here" for name in sorted(set(a) | set(b))
                 if a.get(name) != b.get(name)), "")
