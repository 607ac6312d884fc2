"""`python -m vae_jax VERB --flags`: flags, distributed start, dispatch. The only caller of jax.distributed.initialize.

Verbs: train, analyse, evaluate, sample, reconstruct, interpolate, attributes, encode, decode, encode_codes, compress, decompress, stream, export,
report, compare, bench, reproduce, verify.
`python -m vae_jax VERB --help` lists a verb's flags.
On several machines give every process the same command with --coordinator, --processes and --process_id;
on a TPU pod, Slurm or Kubernetes only --distributed.
"""

import ctypes
import importlib
import os
import re
import signal
import subprocess
import sys
import time

from absl import flags, logging

from vae_jax.config import UserError

VERBS = ("train", "analyse", "evaluate", "sample", "reconstruct", "interpolate", "attributes", "encode", "decode", "encode_codes", "compress",
         "decompress", "stream", "export", "report", "compare", "bench", "reproduce", "verify")
CHILD = "VAE_JAX_CHILD"  # set in the process that does the work, when a parent watches it

COORDINATOR = flags.DEFINE_string("coordinator", "", "Address host:port of process 0, when there are several processes.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Number of this process, from 0.", lower_bound=0)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Find the other processes by the cluster's own means (TPU pod, Slurm, Kubernetes).")


def main(argv: list[str]) -> int:
    started = time.monotonic()
    if len(argv) < 2 or argv[1] not in VERBS:
        print(__doc__.strip(), file=sys.stderr)
        return 0 if len(argv) > 1 and argv[1] in ("-h", "--help", "help") else 2
    verb = importlib.import_module(f"vae_jax.verbs.{argv[1]}")
    try:
        if "--help" in argv[2:] or "-h" in argv[2:]:
            print(verb.__doc__.strip(), *(text for text in map(flags.FLAGS.module_help, _modules(verb)) if text), sep="\n")
            return 0
        rest = parse(argv[1:])[1:]
        if rest:
            raise UserError(f"{rest[0]!r} is not a flag: flags start with --.")
        several = PROCESSES.value > 1 or DISTRIBUTED.value
        if several and CHILD not in os.environ:
            return watch(argv)
        quiet()
        keep_memory()
        if several:
            connect(verb)
        return verb.main(started) or 0
    except flags.Error as error:
        print(f"error: {error} ({argv[1]} --help lists the flags)", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        leave_peers()
    except OSError as error:
        print(f"error: {error.filename or 'a file'} cannot be used ({error.strerror or error}); nothing that was saved is lost", file=sys.stderr)
        leave_peers()
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("error: folders in a bucket (gs://) need gcsfs: pip install gcsfs", file=sys.stderr)
        leave_peers()
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            print("error: the device is out of memory: take a smaller config.data.batch, or config.optim.accumulate; what was saved is kept",
                  file=sys.stderr)
        elif CHILD in os.environ and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
            # A collective breaks when a peer is gone; jax would say so in pages, and wait for the peer at exit.
            print(lost(), file=sys.stderr)
        else:
            raise
        leave_peers()
    except KeyboardInterrupt:
        print("interrupted; what was saved before is kept", file=sys.stderr)
        return 130
    return 2


def _modules(verb):
    """The modules whose flags a verb has, its own first."""
    shared = [m for name, m in sys.modules.items() if name in ("vae_jax.verbs.common", "vae_jax.verbs.trained", "vae_jax.verbs.music")]
    return [verb, *shared, sys.modules["__main__"]]


def parse(argv: list[str]) -> list[str]:
    """absl's parsing, with sentences for what config_flags raises for a mistake in --config or --config.FIELD."""
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError, TypeError) as error:
        if "dataclass" not in str(error) and "config" not in str(error):
            raise
        raise UserError(f"a --config flag cannot be applied: {error.args[0]}.") from None


def quiet():
    """Libraries speak only when something is wrong."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.ERROR)
    logging.use_python_logging(quiet=True)


def keep_memory():
    """Tells glibc to keep freed memory: XLA on the CPU frees its temporaries after every step, and giving them back to the
    system and faulting them in again took a third of a convolutional step. Does nothing on other C libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
        mallopt(parameter, value)


def connect(verb):
    """Joins the other processes. Without flags the cluster's own description is used."""
    import jax

    heartbeat = getattr(getattr(getattr(verb, "CONFIG", None), "value", None), "run", None)
    limits = dict(heartbeat_timeout_seconds=heartbeat.heartbeat_s if heartbeat else 30, initialization_timeout=120, shutdown_timeout_seconds=30)
    where = dict(coordinator_address=COORDINATOR.value, num_processes=PROCESSES.value, process_id=PROCESS_ID.value)
    if not DISTRIBUTED.value and ":" not in COORDINATOR.value:
        raise UserError("--processes needs --coordinator=HOST:PORT, the address of process 0 with a free port.")
    try:
        jax.distributed.initialize(**({} if DISTRIBUTED.value else where), **limits)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"could not join the other processes: {str(error).splitlines()[0]}") from None


def lost() -> str:
    return (f"error: process {PROCESS_ID.value} ended because another process of this run was lost or ended; "
            "start all of them again by the same command, training goes on from the last checkpoint.")


def leave_peers():
    """After an error of one process the others must not wait: leave without the shutdown barrier."""
    if CHILD in os.environ:
        sys.stderr.flush()
        os._exit(2)


def watch(argv) -> int:
    """Runs this command in a child and says in one sentence how it ended: jax ends a process whose peer is lost by abort()."""
    child = subprocess.Popen([sys.executable, "-m", "vae_jax", *argv[1:]], env={**os.environ, CHILD: "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
                             stderr=subprocess.PIPE, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: child.send_signal(n))
    explained = False
    for line in for_the_user(child.stderr):
        explained = explained or line.startswith(b"error: ")
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
    code = child.wait()
    if code == -signal.SIGABRT and explained:  # said why, and was ended by the loss of a peer that left for the same reason
        return 2
    if code == -signal.SIGABRT:
        print(lost(), file=sys.stderr)
    elif code < 0:
        print(f"error: process {PROCESS_ID.value} was killed by {signal.Signals(-code).name}; start all processes again by the same command.",
              file=sys.stderr)
    return 1 if code < 0 else code


def for_the_user(lines):
    """The lines of a child's error output without jax's own C++ log and without the stack that follows a fatal line of it.

    An error sentence of ours passes even then: a peer that left may end this process while it says why it leaves itself."""
    dying = False
    for line in lines:
        log = re.match(rb"([IWEF])\d{4} \d\d:\d\d:", line)
        dying = dying or line.startswith((b"Fatal Python error", b"*** ")) or bool(log and log[1] == b"F")
        if line.startswith(b"error: ") or not (log or dying):
            yield line


if __name__ == "__main__":
    sys.exit(main(sys.argv))
