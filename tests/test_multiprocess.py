"""Two processes equal one; a signal to one makes both save and leave; the loss of one ends the other in one sentence."""

import os
import shutil
import signal
import subprocess

import launch
import pytest
import toys

from vae_jax import checkpoint
from vae_jax.__main__ import for_the_user


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return folder, launch.write_config(folder, toys.pictures(folder / "data"), 4000)


def worker(process) -> int:
    """pid of the child that does the work of a watching process."""
    return int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()[0])


def test_one_device_four_devices_and_two_processes_agree(setup):
    folder, config = setup
    short = [f"--config={config}", "--config.run.steps=20", "--config.run.log_every=1"]
    for name, devices in (("one", 1), ("four", 4)):
        found = launch.run("train", *short, f"--workdir={folder / name}", devices=devices)
        assert found.returncode == 0, found.stderr
    both = launch.pair("train", *short, f"--workdir={folder / 'two'}")
    for process in both:
        _, err = launch.finish(process)
        assert process.returncode == 0, err
    runs = {name: {line["step"]: line for line in launch.lines(folder / name)} for name in ("one", "four", "two")}
    for step in range(20):
        expected = runs["one"][step]["train/loss"]
        assert runs["four"][step]["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert runs["two"][step]["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert runs["two"][20]["eval/test/loss"] == pytest.approx(runs["one"][20]["eval/test/loss"], rel=1e-5)


def test_signals_save_both_and_one_device_goes_on(setup):
    """SIGTERM to one process of two, then, resumed, Ctrl-C, which reaches both; then one device alone."""
    folder, config = setup
    workdir, step = folder / "signal", 0
    for number, chosen in ((signal.SIGTERM, (1,)), (signal.SIGINT, (0, 1))):
        both = launch.pair("train", f"--config={config}", f"--workdir={workdir}")
        launch.wait_for_step(workdir, step + 60, both[0])
        for i in chosen:
            both[i].send_signal(number)
        outs = [launch.finish(process) for process in both]
        assert [process.returncode for process in both] == [0, 0], outs
        step = checkpoint.Checkpoints(workdir / "checkpoints").latest()
        assert f"saved step {step}" in outs[0][0] and "Traceback" not in outs[0][1] + outs[1][1]
    found = launch.run("train", f"--config={config}", f"--workdir={workdir}", f"--config.run.steps={step + 10}")
    assert found.returncode == 0 and f"from step {step} " in found.stderr, found.stderr


def test_processes_that_differ_leave_before_the_first_step(setup):
    """Process 1 alone is given another learning rate and other data."""
    folder, config = setup
    own = ["--config.optim.lr=1e-3", f"--config.data.dir={toys.pictures(folder / 'other', seed=1)}"]
    both = launch.pair("train", f"--config={config}", f"--workdir={folder / 'differ'}", own=([], own))
    for process in both:
        _, err = launch.finish(process)
        assert process.returncode == 2 and "process 1 differs from process 0 in config.optim, the data set:" in err, err
    assert not (folder / "differ" / "config.json").exists()


def test_what_a_child_says_of_itself_passes_when_its_peer_ends_it_meanwhile():
    log, fatal = b"E1122 18:00:00.000000 12 client.cc:1] heartbeat\n", b"F1122 18:00:00.000000 12 client.h:77] terminating\n"
    ours = b"error: process 1 differs from process 0.\n"
    assert list(for_the_user([b"a line\n", log, fatal, b"    @ 0x7f stack\n", ours, b"more stack\n"])) == [b"a line\n", ours]
    assert list(for_the_user([b"Fatal Python error: Aborted\n", b"File x\n"])) == []


def test_the_loss_of_a_process_ends_the_other_within_the_heartbeat(setup):
    folder, config = setup
    workdir = folder / "lost"
    both = launch.pair("train", f"--config={config}", f"--workdir={workdir}")
    launch.wait_for_step(workdir, 60, both[0])
    os.kill(worker(both[1]), signal.SIGKILL)
    out, err = launch.finish(both[0], 60)  # the heartbeat is 10 s
    launch.finish(both[1])
    assert both[0].returncode in (1, 2)
    assert "another process of this run was lost" in err and len(err.strip().splitlines()[-1]) < 400
    assert "Traceback" not in err
    assert checkpoint.Checkpoints(workdir / "checkpoints").latest() is not None


def test_an_error_in_one_process_ends_both(setup):
    """Process 1 alone meets a damaged record: it says so, and does not wait for its peer, which is in the middle of a step."""
    folder, config = setup
    broken = folder / "broken"
    shutil.copytree(folder / "data", broken)
    shard = next(broken.glob("*-train.tfrecord-*"))
    both = launch.pair("train", f"--config={config}", f"--workdir={folder / 'one_error'}", "--config.data.memory_mb=0",
                       own=([], [f"--config.data.dir={broken}"]))
    launch.wait_for_step(folder / "one_error", 30, both[0])
    with open(shard, "r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"damage" * 60)
    outs = [launch.finish(process, 60) for process in both]
    assert both[1].returncode == 2 and "damaged" in outs[1][1], outs
    assert both[0].returncode != 0 and "another process of this run was lost or ended" in outs[0][1], outs
