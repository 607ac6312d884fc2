"""What the verbs share that use a trained run: which checkpoint, and opening it."""

import jax
from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import common

CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation, else the newest), newest, or a step number.")


def left(early: bool) -> None:
    """Says that a verb was asked to leave."""
    if early and jax.process_index() == 0:
        print("left before the end, as asked; nothing was written")


def held_out(run):
    """(role, data.Source) of the run's own held-out split, or ('', why there is none)."""
    from vae_jax import session

    role = next((r for r in ("test", "validation") if getattr(run.config.data, r)), "")
    if not role:
        return "", "the run has no held-out split to compare it with"
    try:
        return role, session.sources(run, (role,))[role]
    except UserError:
        return "", "the run's own data is gone or has changed, so there is no held-out error to compare it with"


def open_run():
    """The run that --workdir and --checkpoint name. Raises UserError."""
    from vae_jax import config as configs
    from vae_jax import session

    if not common.WORKDIR.value:
        raise UserError("give the run's folder: --workdir=runs/NAME.")
    common.compile_cache(configs.read(common.WORKDIR.value).run.compile_cache)
    return session.open_run(common.WORKDIR.value, CHECKPOINT.value)


def open_run_of_waves():
    """The same, of a model of the wave whose latents are numbers. Raises UserError for another."""
    run = open_run()
    if run.task.front is None or run.task.front.kind != "wave" or run.task.front.hop:
        raise UserError(f"this is for models of the wave, such as RAVE, and {run.workdir} is a run of the task {run.config.task!r}.")
    return run
