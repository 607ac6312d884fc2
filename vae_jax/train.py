"""The loop, one for every experiment: restore or init, then per step evaluate, save or leave, batch, update, deferred log.

A run's whole state is (train state, step, progress): data and randomness are functions of (seed, step). So a run that is
killed at any step and started again by the same command equals an unbroken one bit for bit. Nothing here knows a model.
"""

import collections
import copy
import dataclasses
import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vae_jax import checkpoint, evaluate, metrics, optim, records, session, tasks
from vae_jax import config as configs
from vae_jax import data as datas
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import Config, UserError

AHEAD = 2  # steps dispatched before the oldest is waited for: enough to keep a device busy
NAMED = 5  # values that are not finite, at most, in the message


@dataclasses.dataclass
class Progress:
    """What evaluation has decided so far; saved with the state as it was *before* the step's own evaluation."""

    best: dict[str, float] = dataclasses.field(default_factory=dict)  # stage -> best validation value
    waited: int = 0  # evaluations since the last improvement


def train(config: Config, workdir: str, started: float | None = None) -> dict | None:
    """Trains until `config.run.steps`, resuming what WORKDIR holds.

    Returns the last evaluation {metric: value}, or None when the run was asked to leave before its end. `started` is
    time.monotonic() at the start of the command, for the goodput account. Raises UserError for what a user can mend.
    """
    clock = metrics.Clock(started)
    mesh = meshes.make(config.run.devices)
    configs.check(config, mesh.size, jax.default_backend())
    workdir = session.folder(workdir)
    with checkpoint.lock(workdir), session.Leaving() as leaving:
        return _train(agree(config, workdir), workdir, mesh, clock, leaving)


def agree(config: Config, workdir: epath.Path) -> Config:
    """The configuration to run: `config` if WORKDIR is new, else the stored one with `config.run`'s fields."""
    config = copy.deepcopy(config)
    if configs.is_run(workdir):
        stored = configs.read(workdir)
        config.optim.decay_steps = config.optim.decay_steps or stored.optim.decay_steps
        given, kept = configs.to_dict(config), configs.to_dict(stored)
        given["run"], given["data"]["dir"] = kept["run"], kept["data"]["dir"]  # moved data are told by their digest
        changed = configs.differences(kept, given)
        if changed:
            raise UserError(f"{workdir} holds another run. It differs in config.{'; config.'.join(changed)}. "
                            "Only config.run may change when a run is resumed: give another --workdir, or the stored values.")
    elif any(p.name not in ("lock", "spec.json") and p.suffix != ".partial" and not p.name.startswith("start_from_") for p in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run (no config.json): give another --workdir.")
    config.optim.decay_steps = config.optim.decay_steps or config.run.steps
    return config


def _train(config: Config, workdir: epath.Path, mesh, clock: metrics.Clock, leaving: session.Leaving) -> dict:
    # ---- data, task, state shapes -------------------------------------------------------------------------------------
    stored = session.same_spec(workdir, records.open_folder(config.data.dir))
    spec = datas.cropped(stored, config.data.crop)
    source = datas.open_source(config.data, "train")
    held_out = {role: source if role == "train" else datas.open_source(config.data, role) for role in config.eval.roles if getattr(config.data, role)}
    task = tasks.get(config, spec)
    _same_everywhere(config, spec)
    example = session.example(spec, config.data.batch)
    init = jax.jit(lambda b: updates.init_state(task, config, b), out_shardings=meshes.replicated(mesh))
    shapes = jax.eval_shape(init, example)
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=meshes.replicated(mesh)), shapes)
    sums_fn = evaluate.make_sums(task.metrics, mesh)
    if config.data.validation:
        _known_metric(config.eval.metric, _reported(config, task, sums_fn, shapes, spec, mesh))

    # ---- rehearse, restore or init ------------------------------------------------------------------------------------
    saves = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.run.keep)
    update = updates.make_update(task, config, mesh)
    with clock.span("compile"):
        compiled = _rehearse(task, config, update, init, example, mesh, saves.latest() or 0)
    progress, step, found = Progress(), 0, saves.restore(target)
    if found is None:
        state = session.start_from(init(example), config, spec, workdir, mesh)
    else:
        state, meta, step = found
        progress = Progress(**meta["progress"])
    session.store(workdir, config, stored)  # only now: a mistake found above leaves no run behind
    best = {}  # stage -> its own checkpoints, of which one is kept
    writer = metrics.Writer(workdir, step)
    clock.resume(writer.reached)
    bar = metrics.Progress(config.run.steps)
    if meshes.is_main():
        print(_overview(task, config, source, shapes, mesh, step), file=sys.stderr, flush=True)

    eval_key = jax.random.key(config.seed + 1)
    batches = datas.train_batches(source, mesh, config.seed, step, config.data.batch)
    pending, result, running, whole = None, {}, collections.deque(), False

    def flush():
        """Writes the logged step's own metrics, fetched late so that the device never waits for the log."""
        nonlocal pending
        if pending is None:
            return
        s, values, pending = pending[0], jax.device_get(pending[1]), None
        if not values["finite"]:
            require_finite()  # raises: the state remembers its first bad step
        line = {f"train/{k}": float(v) for k, v in values.items() if k not in ("finite", "bad_step", "bad_terms")}
        line["train/lr"] = float(optim.learning_rate(config.optim, config.optim.decay_steps, s, np))
        writer.write(s, line | clock.report(s))
        bar.show(s, line["train/loss"], clock)

    def require_finite():
        """Asked before every save. Raises UserError naming the first metrics that were not finite, or the leaves of the state that are not."""
        bad = int(jax.device_get(state.bad_step))
        if bad != updates.NEVER:
            names, when = updates.bad_terms(jax.device_get(state.bad_terms), _metric_names(task, config, state, example, bad)), f"at step {bad}"
        else:
            with clock.span("save"):
                names, when = _not_finite(state), f"after {step} steps"
            if not names:
                return
        saves.finish()
        good = saves.latest()
        raise UserError(f"training stopped: {when} these were not finite: {', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)}. "
                        f"{'No checkpoint was saved before that' if good is None else f'The last good checkpoint is step {good}'}. "
                        "Lower config.optim.lr or set config.optim.clip, in a new --workdir.")

    try:
        while True:
            # ---- evaluate the state before the step, with the progress before it kept for the save ----------------------
            before, last = copy.deepcopy(progress), step >= config.run.steps
            if last or (config.eval.every and step % config.eval.every == 0):
                flush()
                with clock.span("evaluate"):
                    result = _evaluate(config, task, sums_fn, state, held_out, mesh, eval_key, step, leaving) or {}
                if result:
                    writer.write(step, result)
                    bar.evaluated(step, result)
                    if config.data.validation and _judge(config, task.stage(step), result, progress):
                        require_finite()
                        stage = task.stage(step)
                        if stage not in best:
                            best[stage] = checkpoint.Checkpoints(workdir / f"best_{stage}", keep=1)
                        best[stage].save(step, state, {"metric": config.eval.metric, "value": progress.best[stage]})
            stop = bool(config.eval.patience and progress.waited >= config.eval.patience)

            # ---- save, or leave ----------------------------------------------------------------------------------------
            if step and not last and task.stage(step + 1) != task.stage(step):  # the end of a stage is kept beside the newest
                flush()
                require_finite()
                with clock.span("save"):
                    ended = checkpoint.Checkpoints(workdir / f"end_{task.stage(step)}", keep=1)
                    ended.save(step, state, {})
                    ended.finish()
            leave = leaving.now()
            if last or stop or leave or (step and step % config.run.save_every == 0):
                flush()
                require_finite()
                with clock.span("save"):
                    for folder in best.values():
                        folder.finish()  # before a step that tells of it
                    writer.sync()  # and a step that is sealed must not lack its lines
                    saves.save(step, state, {"progress": dataclasses.asdict(before)})
            if last or stop or leave:
                break

            # ---- batch, update, deferred log ---------------------------------------------------------------------------
            with clock.span("input_wait"):
                batch = next(batches)
            moves = task.schedule(step)
            with clock.span("compile" if moves not in compiled else "dispatch"):
                state, values = update(state, batch, moves)
                if moves not in compiled:
                    jax.block_until_ready(values)
                    compiled.add(moves)
                # A queue of many slow steps would have to run out before a signal, an evaluation or a save is obeyed.
                running.append(values["finite"])
                if len(running) > AHEAD:
                    jax.block_until_ready(running.popleft())
            clock.step(config.data.batch)
            if jax.process_count() == 1:  # elsewhere only process 0 would learn of a failed save, and the others would wait for it
                saves.poll()
            step += 1
            if (step - 1) % config.run.log_every == 0 or step == config.run.steps:
                flush()
                pending = (step - 1, values)
        flush()
        whole = True
    finally:
        batches.close()
        if whole or jax.process_count() == 1:  # after an error of one process the others are in the loop, and would be waited for forever
            with clock.span("save"):
                for folder in best.values():
                    folder.finish()
                sealed = saves.finish()
        writer.close()
        bar.close()

    if meshes.is_main():
        saved = max(sealed) if sealed else saves.latest()
        why = "left on request" if leave else "stopped early: no improvement" if stop else "done"
        print(f"{why} at step {step} of {config.run.steps}; saved step {saved} in {workdir}; {clock.goodput()}", flush=True)
    return None if leave and not (last and result) else result


def _rehearse(task, config, update, init, example, mesh, step) -> set[tuple[str, ...]]:
    """Compiles every tuple of moves that comes after the next step's own and runs it once, on a state that is thrown away: what does not fit into
    memory fails now, and not when a later stage begins. Returns the tuples."""
    later = {task.schedule(s) for s in range(step, config.run.steps)} - {task.schedule(step)}
    rows = meshes.own_rows(config.data.batch)
    for moves in sorted(later):
        batch = meshes.to_global(mesh, {k: v[rows] for k, v in example.items()})
        jax.block_until_ready(update(init(example), batch, moves))
    return later


def _same_everywhere(config, spec) -> None:
    """Raises UserError in every process where one differs from process 0 in its configuration or data, which would train a mixture of both."""
    if jax.process_count() == 1:
        return
    parts = {f"config.{name}": value for name, value in configs.to_dict(config).items()} | {"the data set": spec.to_dict()}
    del parts["config.data"]["dir"], parts["config.run"]["compile_cache"]  # machines may keep these in places of their own
    own = np.stack([np.frombuffer(hashlib.sha256(json.dumps(part, sort_keys=True).encode()).digest(), np.uint8) for part in parts.values()])
    differ = np.any((found := multihost_utils.process_allgather(own)) != found[0], -1)
    if differ.any():
        process = int(np.argmax(differ.any(1)))
        raise UserError(f"process {process} differs from process 0 in {', '.join(name for name, odd in zip(parts, differ[process]) if odd)}: "
                        "start all processes by the same command, on the same data.")


def _evaluate(config, task, sums_fn, state, held_out, mesh, key, step, leaving) -> dict | None:
    """{eval/ROLE/metric: value} of every role, or None when asked to leave on the way."""
    params, found = updates.eval_params(state), {}
    for role, source in held_out.items():
        # Validation is always whole: its values are compared over the run. The end of the run reports all of every split.
        examples = 0 if role == "validation" or step >= config.run.steps else config.eval.examples
        values = evaluate.evaluate(sums_fn, task.summary, params, state.variables, source, mesh, config.eval.batch, key, examples, leaving.now)
        if values is None:
            return None
        found |= {f"eval/{role}/{name}": v for name, v in values.items()}
    return found


def _reported(config, task, sums_fn, shapes, spec, mesh) -> set[str]:
    """Names of what an evaluation reports, without one: the summary of sums that are all 1."""
    batch = meshes.round_up(mesh, config.eval.batch)
    rows = session.example(spec, batch) | {"mask": np.ones(batch, np.float32)}
    sums = jax.eval_shape(sums_fn, updates.eval_params(shapes), shapes.variables, rows, jax.random.key(0))
    return set(task.summary(*jax.tree.map(lambda s: np.ones(s.shape), sums), batch))


def _known_metric(metric, reported) -> None:
    if metric not in reported:
        raise UserError(f"config.eval.metric={metric!r} is not among what this task reports: {', '.join(sorted(reported))}.")


def _judge(config, stage, result, progress) -> bool:
    """True if this is the stage's best validation so far; counts the evaluations without improvement."""
    path = f"eval/validation/{config.eval.metric}"
    _known_metric(config.eval.metric, {p.split("/", 2)[2] for p in result})  # some are reported for some data only
    if not result[path] < progress.best.get(stage, np.inf):
        progress.waited += 1
        return False
    progress.best[stage], progress.waited = result[path], 0
    return True


def _not_finite(state) -> list[str]:
    """Paths of the leaves that hold a value that is not finite. Metrics tell of it a step late: they look at the weights before the update.

    On the host, where a save copies every leaf anyway: one jitted test of some hundred leaves takes seconds to compile.
    """
    parts = {"params": state.params, "variables": state.variables, "opt": state.opt, "ema": state.ema}
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, x in jax.tree.leaves_with_path(parts)
            if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(np.asarray(x.addressable_data(0))).all()]


def _metric_names(task, config, state, example, step):
    _, found = jax.eval_shape(lambda s, b: updates.update(task, config, s, b, task.schedule(step)), state, example)
    return found


def _overview(task, config, source, shapes, mesh, step) -> str:
    counts = {p: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for p, tree in shapes.params.items()}
    processes = jax.process_count()
    return (f"{config.name or config.task}: {sum(counts.values()):,} parameters ({', '.join(f'{p} {n:,}' for p, n in counts.items())}); "
            f"{len(source):,} examples; batch {config.data.batch} global, {config.data.batch // processes} a process, "
            f"{config.data.batch // mesh.size} a device; {mesh.size} {mesh.devices.flat[0].platform} device(s) in {processes} process(es); "
            f"{'from step ' + str(step) if step else 'from scratch'} to {config.run.steps}{task.about and '; ' + task.about()}")
