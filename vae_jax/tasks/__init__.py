"""What varies between experiments: a Task, a handful of pure functions. `get` picks one from a fixed table.

The loop (`train.py`), the update (`update.py`) and evaluation (`evaluate.py`) know these two tuples and nothing else.
"""

import importlib
from typing import Any, Callable, NamedTuple

from vae_jax.config import Config, Optim, UserError

TASKS = {"vae": "vae_jax.tasks.vae", "vqvae": "vae_jax.tasks.vqvae", "code_prior": "vae_jax.tasks.code_prior",
         "wave_vqvae": "vae_jax.tasks.wave_vqvae", "wave_code_prior": "vae_jax.tasks.wave_code_prior",
         "rave": "vae_jax.tasks.rave", "classifier": "vae_jax.tasks.classifier"}


class Move(NamedTuple):
    """One loss and the players it trains.

    loss(params, variables, batch, key, step) -> (scalar, (variables, metrics)); it is differentiated for, and writes back,
    only `players`, in params and in variables: a player in no move is frozen. gate(metrics) -> {player: bool} may
    hold a player back for a step; it then keeps params, optimizer state and variables.
    """

    players: tuple[str, ...]
    loss: Callable[..., Any]
    gate: Callable[[dict], dict] | None = None


class Task(NamedTuple):
    """The pure functions of an experiment. params and variables map a player's name to a tree.

    init(key, batch) -> (params, variables)
    moves: name -> Move;  schedule(step) -> names of this step's moves (plain Python, static; one compile a distinct tuple)
    stage(step) -> name; best-by-validation is kept per stage
    metrics(params, variables, batch, key) -> dict of arrays, first axis = example, any trailing shape
    summary(sums, squares, count) -> scalars; sums and squares are dicts like metrics' without the first axis, in float64
    encode(params, variables, batch) -> dict, first axis = example: mean, logvar or indices; no draw
    decode(params, variables, code, condition) -> dict of arrays in data units
    condition(batch) -> [n, k], what `decode` takes beside the code; absent for an unconditional model
    sample(params, variables, key, request) -> dict whose names start with the kind ('image/', 'audio/', 'roll/')
    measures: name -> function of (params, variables, batch, key, amount) -> per-example arrays too dear for every
        evaluation (importance-weighted likelihood); asked for by `evaluate --measure=NAME:AMOUNT`
    exports: name -> (function of (params, variables, inputs), {input: (its shape with symbols for open sizes, dtype)}), see `export`: `encode`,
        `decode` (their latents are 'z'), `sample`; streams are a pair `start`, `step` with a 'state', whose shape is "start"
    optim: player -> Optim, where it differs from config.optim
    about() -> what a user should know before a long training, in words; '' = nothing
    front: how records are seen (fronts.Front): what `decode` gives as 'image' is like front.analyse(batch)
    """

    init: Callable[..., Any]
    moves: dict[str, Move]
    metrics: Callable[..., dict]
    summary: Callable[..., dict]
    schedule: Callable[[int], tuple[str, ...]]
    stage: Callable[[int], str] = lambda step: "main"
    encode: Callable[..., dict] | None = None
    decode: Callable[..., dict] | None = None
    condition: Callable[[dict], Any] | None = None
    sample: Callable[..., dict] | None = None
    measures: dict[str, Callable[..., dict]] = {}
    exports: dict[str, tuple] = {}
    optim: dict[str, Optim] = {}
    front: Any = None
    about: Callable[[], str] | str = ""


def rebuild(task: Task, params, variables, batch) -> tuple[dict, dict]:
    """What a task makes of a batch through posterior means or codes, without a draw: the rows of `encode`, and those of `decode`."""
    code = task.encode(params, variables, batch)
    return code, task.decode(params, variables, code.get("mean", code.get("indices")), task.condition and task.condition(batch))


def module(name: str):
    """The module of a task: it has a `Model` dataclass and `make(config, spec) -> Task`."""
    if name not in TASKS:
        raise UserError(f"config.task={name!r} is not known; tasks are {', '.join(TASKS)}.")
    return importlib.import_module(TASKS[name])


def get(config: Config, spec) -> Task:
    """The task of a configuration; `spec` (records.Spec) describes the data."""
    return module(config.task).make(config, spec)
