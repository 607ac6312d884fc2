"""Starts `python -m vae_jax` as a user would, for the tests of whole runs."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

CONFIG = '''
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae

def get_config():
    return Config(
        name="toy", seed=5,
        model=vae.Model(hidden=(16,), latent=3, likelihood="bernoulli", binarize=True, prior="mixture", components=4, warmup="linear",
                        warmup_steps=20),
        data=Data(dir={data!r}, validation="validation", batch=16),
        optim=Optim(lr=2e-3, clip=50.0, ema=0.9, schedule="cosine", weight_decay=1e-4),
        eval=Eval(every=30, batch=12, patience=50),
        run=Run(steps={steps}, log_every=5, save_every=25, heartbeat_s=10, compile_cache={cache!r}))
'''


def write_config(folder: pathlib.Path, data, steps: int = 400) -> str:
    path = folder / "toy_config.py"
    path.write_text(CONFIG.format(data=str(data), steps=steps, cache=str(folder / "cache")))
    return str(path)


def start(*args, devices: int = 1, cwd=ROOT) -> subprocess.Popen:
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "vae_jax", *map(str, args)], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*args, devices: int = 1, timeout: float = 120, cwd=ROOT) -> subprocess.CompletedProcess:
    """Runs to the end; the exit status is the caller's to check."""
    process = start(*args, devices=devices, cwd=cwd)
    out, err = finish(process, timeout)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def finish(process, timeout: float = 120) -> tuple[str, str]:
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s\n{out}\n{err}") from None


def pair(*args, devices: int = 2, own=((), ())) -> list[subprocess.Popen]:
    """The same command in two processes that find each other on this machine; `own`: flags of its own for each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [start(*args, *own[i], f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process_id={i}", devices=devices) for i in range(2)]


def lines(workdir) -> list[dict]:
    """metrics.jsonl so far, whole lines only."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_step(workdir, step: int, process, timeout: float = 90) -> None:
    """Until the log has reached a step; fails if the run ends before."""
    until = time.monotonic() + timeout
    while not any(line["step"] >= step for line in lines(workdir)):
        assert process.poll() is None, f"ended before step {step}: {process.communicate()}"
        assert time.monotonic() < until, f"no step {step} within {timeout} s"
        time.sleep(0.005)


def kill_group(process) -> None:
    """SIGKILL to a process and, when it only watches, to the child that does the work."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGKILL)
