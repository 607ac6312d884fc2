"""The typed configuration of a run: shared dataclasses, how they are stored, and one check that explains what is wrong.

A task's own fields (network, likelihood, prior ...) live in its file under `tasks/` and hang below `Config.model`.
A stored configuration is JSON and is never executed: it is read back field by field into these classes.
"""

import dataclasses
import json
import types
import typing
from typing import Any

from etils import epath


class UserError(Exception):
    """A mistake the user can mend. Shown as its sentence, without a traceback, exit status 2."""


@dataclasses.dataclass
class Data:
    """Where the examples come from. A split is NAME, NAME[a:b] or NAME[a%:b%] of the folder's splits."""

    dir: str = ""  # folder written by a data_prep script
    train: str = "train"
    validation: str = ""  # chooses the best checkpoint and stops early; '' = neither
    test: str = "test"  # never looked at by a choice
    batch: int = 128  # examples a step, over all devices and processes
    memory_mb: int = 4096  # a split up to this size is held in memory, a larger one is read by record
    crop: int = 0  # samples cut from longer sounds, at random in training and side by side elsewhere; 0 = whole records


@dataclasses.dataclass
class Optim:
    """Optimizer of one player. Learning rates are functions of the train step, so a gated or late player is in phase."""

    name: str = "adam"  # adam, rmsprop, sgd (with momentum b1)
    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999  # adam's second moment; rmsprop's decay
    eps: float = 1e-8
    weight_decay: float = 0.0  # decoupled from the gradient, as in AdamW; kernels only, never biases, scales or embeddings
    clip: float = 0.0  # global gradient norm over the players that share these settings; 0 = off
    schedule: str = "constant"  # constant, cosine, step, exponential, linear
    warmup_steps: int = 0  # linear from 0
    decay_steps: int = 0  # length of cosine, and of linear from lr to factor * lr; steps per factor of exponential; 0 = run.steps of the first launch
    boundaries: tuple[int, ...] = ()  # steps at which `step` multiplies by `factor`
    factor: float = 0.1
    accumulate: int = 1  # micro-batches a step
    ema: float = 0.0  # decay of the averaged weights that evaluation and samples use, at step t at most (1 + t) / (10 + t); 0 = off
    ema_players: tuple[str, ...] = ()  # () = all trained players


@dataclasses.dataclass
class Eval:
    every: int = 1000  # steps; 0 = only at the end
    roles: tuple[str, ...] = ("train", "validation", "test")  # those that are empty in `data` are left out
    batch: int = 500  # examples a batch, over all devices; rounded up to a multiple of them
    examples: int = 10000  # at most so many of train and test while training; 0 = all. Validation is always whole
    metric: str = "loss"  # lower is better; chooses best and stops early on `validation`
    patience: int = 0  # evaluations without improvement before stopping; 0 = never


@dataclasses.dataclass
class Run:
    """Length, intervals and devices: the only part that may change when a run is resumed."""

    steps: int = 10000
    log_every: int = 100  # steps
    save_every: int = 1000  # steps
    keep: int = 2  # newest checkpoints kept, besides the best
    devices: int = 0  # 0 = all
    heartbeat_s: int = 30  # seconds after which a lost process ends the others
    compile_cache: str = "~/.cache/vae_jax"  # '' = off


@dataclasses.dataclass
class Target:
    """A figure an experiment promises: `reproduce` prints ours beside it."""

    metric: str = ""  # path in the evaluation, e.g. eval/test/nll
    value: float = 0.0
    goal: str = "<="  # <=, >=, or a tolerance: '+-'
    tolerance: float = 0.0  # only for '+-'
    source: str = ""


@dataclasses.dataclass
class Config:
    name: str = ""  # row or experiment name
    task: str = "vae"  # a name of tasks.TASKS
    seed: int = 0
    dtype: str = "float32"  # of activations: float32, or bfloat16 on GPU and TPU
    model: Any = None  # the task's own dataclass
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    eval: Eval = dataclasses.field(default_factory=Eval)
    run: Run = dataclasses.field(default_factory=Run)
    start_from: str = ""  # PLAYER=RUN,PLAYER=RUN: weights taken from other runs after init, never on resume
    measures: dict[str, int] = dataclasses.field(default_factory=dict)  # of the task, with their amounts, that `reproduce` takes: nll: 5000
    targets: tuple[Target, ...] = ()


def to_dict(config) -> dict:
    """The configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls, values: dict, where: str = "config"):
    """A dataclass from plain values; every field is checked by name and type. Raises UserError naming the field."""
    if not isinstance(values, dict):
        raise UserError(f"{where} should be an object with fields, but is {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{where} has no field {unknown[0]!r}; it has: {', '.join(fields)}.")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _typed(hint, value, where):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {_typed(args[0], k, where): _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise UserError(f"{where} should be {getattr(hint, '__name__', hint)}, but is {value!r}.")


def load(text: str) -> Config:
    """A stored configuration. The model's class is picked by the stored task name from one fixed table."""
    from vae_jax import tasks

    values = json.loads(text)
    if not isinstance(values, dict):
        raise UserError(f"a stored configuration should be an object with fields, but is {str(values)[:60]!r}.")
    model = values.pop("model", None)
    config = from_dict(Config, values)
    config.model = from_dict(tasks.module(config.task).Model, model or {}, "config.model")
    return config


def is_run(workdir: str) -> bool:
    return (epath.Path(workdir) / "config.json").exists()


def read(workdir: str) -> Config:
    path = epath.Path(workdir) / "config.json"
    if not is_run(workdir):
        raise UserError(f"{workdir} is not a run folder: it has no config.json. Give the --workdir of a `train`.")
    try:
        return load(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Copy it from a backup, or train into a new --workdir.") from None


def differences(a, b, prefix="") -> list[str]:
    """Paths of the fields in which two configurations (as dicts) differ."""
    found = []
    for key in sorted(set(a) | set(b)):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append(f"{prefix}{key}: {x!r} stored, {y!r} given")
    return found


def origins(config: Config) -> dict[str, str]:
    """{player: run folder} of config.start_from. Raises UserError for text that does not say that."""
    pairs = [text.partition("=") for text in config.start_from.split(",") if text]
    if not all(player and equals and folder for player, equals, folder in pairs):
        raise UserError(f"config.start_from={config.start_from!r} should be PLAYER=RUN, several with commas: encoder=runs/a,decoder=runs/b.")
    return {player: folder for player, _, folder in pairs}


def at_least(settings, least: dict, at: str = "config.model") -> None:
    """Raises UserError for a setting, of those that are at `at`, that is below what it must at least be."""
    for name, value in least.items():
        if not getattr(settings, name) >= value:
            raise UserError(f"{at}.{name}={getattr(settings, name)} is too small: give at least {value}.")


def check(config: Config, devices: int, platform: str) -> None:
    """Raises UserError with one sentence for a configuration that cannot run on so many devices of a platform ('cpu', 'gpu', 'tpu')."""
    c, positive = config, {
        "data.batch": config.data.batch, "eval.batch": config.eval.batch, "run.steps": config.run.steps,
        "run.log_every": config.run.log_every, "run.save_every": config.run.save_every, "run.keep": config.run.keep,
        "optim.accumulate": config.optim.accumulate,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"config.{name} is {value}; it must be at least 1.")
    for name, value in {"seed": c.seed, "data.crop": c.data.crop, "eval.every": c.eval.every, "eval.examples": c.eval.examples,
                        "eval.patience": c.eval.patience, "run.devices": c.run.devices, "optim.lr": c.optim.lr, "optim.clip": c.optim.clip,
                        "optim.warmup_steps": c.optim.warmup_steps, "optim.weight_decay": c.optim.weight_decay}.items():
        if value < 0:
            raise UserError(f"config.{name} is {value}; it must not be negative.")
    if not 0 <= c.optim.ema < 1:
        raise UserError(f"config.optim.ema is {c.optim.ema}; a decay lies in 0..1, e.g. 0.999.")
    if not c.data.dir:
        raise UserError("config.data.dir is empty: give the folder a data_prep script wrote, --config.data.dir=DIR.")
    micro = c.data.batch // c.optim.accumulate
    if micro * c.optim.accumulate != c.data.batch or micro % devices:
        raise UserError(f"config.data.batch={c.data.batch} does not divide over {devices} devices x accumulate={c.optim.accumulate}; "
                        f"take a multiple of {devices * c.optim.accumulate}.")
    for name, value, allowed in [("dtype", c.dtype, ("float32", "bfloat16")), ("optim.name", c.optim.name, ("adam", "rmsprop", "sgd")),
                                 ("optim.schedule", c.optim.schedule, ("constant", "cosine", "step", "exponential", "linear"))]:
        if value not in allowed:
            raise UserError(f"config.{name}={value!r} is not known; choose one of {', '.join(allowed)}.")
    if c.dtype == "bfloat16" and platform == "cpu":
        raise UserError("config.dtype=bfloat16 is for GPU and TPU; on a CPU it is several times slower than float32: leave it out here.")
    for role in c.eval.roles:
        if role not in ("train", "validation", "test"):
            raise UserError(f"config.eval.roles names {role!r}; roles are train, validation, test.")
    if c.data.validation and "validation" not in c.eval.roles:
        raise UserError("config.data.validation is set, but config.eval.roles leaves validation out: add it, or empty config.data.validation.")
    if c.eval.patience and not c.data.validation:
        raise UserError("config.eval.patience needs config.data.validation: early stopping looks at validation, never at test.")
