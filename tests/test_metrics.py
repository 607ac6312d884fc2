"""The log: exact after a resume, valid JSON whatever the numbers, readable by TensorBoard; the goodput account adds up."""

import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from vae_jax import metrics, seal
from vae_jax.config import UserError
from vae_jax.metrics import Clock, Progress, Writer, read


def write(workdir, resume_step, steps):
    writer = Writer(workdir, resume_step)
    for step in steps:
        writer.write(step, {"train/loss": step / 3, "perf/elapsed_s": 7.0})
    writer.close()
    return writer


def test_lines_are_read_back_exactly_and_are_strict_json(tmp_path):
    writer = Writer(tmp_path)
    values = {"a": np.float32(0.1), "b": 1e300, "c": 3, "d": float("nan"), "e": float("inf"), "f": -np.inf, "g": np.array(2.5)}
    writer.write(4, values)
    found = read(tmp_path)  # before any sync or close
    writer.close()
    assert found[0].keys() == {"step", *values} and found[0]["step"] == 4
    np.testing.assert_array_equal([found[0][k] for k in values], [float(v) for v in values.values()])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["d"] == "nan"


def test_resume_leaves_the_file_of_an_unbroken_run(tmp_path):
    write(tmp_path / "whole", 0, range(10))
    write(tmp_path / "broken", 0, range(8))
    with open(tmp_path / "broken" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 8, "train/lo')
    writer = write(tmp_path / "broken", 5, range(5, 10))
    assert writer.reached == 8
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "broken" / "metrics.jsonl.partial").exists()


def test_resume_from_scratch_empties_the_file_and_a_clean_end_replays_nothing(tmp_path):
    write(tmp_path, 0, range(3))
    assert write(tmp_path, 3, [3]).reached == 3 and len(read(tmp_path)) == 4
    assert write(tmp_path, 0, [0]).reached == 4 and [line["step"] for line in read(tmp_path)] == [0]


@pytest.mark.parametrize("bad", [b"{}\n", b"[1]\n", b"\xff\n", b'{"step": "2"}\n', b'{"step": 2, "a": [1]}\n', b"\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_told_by_its_number(tmp_path, capsys, bad):
    write(tmp_path, 0, range(3))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bad + lines[1] + lines[2])
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl is damaged"):
        read(tmp_path)
    write(tmp_path, 3, [])
    assert "Line 2 of" in capsys.readouterr().err
    assert [line["step"] for line in read(tmp_path)] == [0, 1, 2]


def test_a_torn_last_line_is_left_out(tmp_path):
    assert read(tmp_path) == []
    write(tmp_path, 0, range(3))
    path = tmp_path / "metrics.jsonl"
    data = path.read_bytes()
    start = data[:-1].rindex(b"\n") + 1
    for cut in range(start, len(data)):
        path.write_bytes(data[:cut])
        assert [line["step"] for line in read(tmp_path)] == [0, 1]


def test_a_crash_while_rewriting_keeps_the_old_file(tmp_path, monkeypatch):
    write(tmp_path, 0, range(4))
    old = (tmp_path / "metrics.jsonl").read_bytes()

    def broken(path, data):
        pathlib.Path(path).write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(seal, "write", broken)
    with pytest.raises(UserError, match=r"The log in .* cannot be written \(No space left on device\)"):
        Writer(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == old


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    writer = Writer(tmp_path)
    writer._lines = open("/dev/full", "wb")
    with pytest.raises(UserError, match="No space left"):
        writer.write(0, {"a": 1.0})
    writer._lines.raw.close()


def test_what_was_written_survives_sigkill(tmp_path):
    code = ("import os, signal\nfrom vae_jax.metrics import Writer\n"
            f"w = Writer({str(tmp_path)!r})\nw.write(1, {{'a': 2.0}})\nos.kill(os.getpid(), signal.SIGKILL)")
    child = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert child.returncode == -signal.SIGKILL
    assert read(tmp_path) == [{"step": 1, "a": 2.0}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"brain.Event:2" in events.read_bytes() and events.read_bytes().count(b"\x0a\x01a\x15" + np.float32(2).tobytes()) == 1


def test_tensorboard_reads_the_events(tmp_path):
    """TensorFlow's own reader, which also checks the frames; the second attempt purges what the first had from its step on."""
    tf = pytest.importorskip("tensorflow")
    write(tmp_path, 0, [1, 300])
    writer = Writer(tmp_path, 300)
    writer.write(300, {"train/loss": float("nan"), "big": 1e300, "eval/né": -0.5})
    writer.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    events = list(tf.compat.v1.train.summary_iterator(str(first)))
    assert events[0].file_version == "brain.Event:2" and events[0].wall_time > 1.7e9
    assert [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value] == [
        (1, "train/loss", np.float32(1 / 3)), (1, "perf/elapsed_s", 7.0), (300, "train/loss", 100.0), (300, "perf/elapsed_s", 7.0)]
    events = list(tf.compat.v1.train.summary_iterator(str(second)))
    assert [e.step for e in events if e.session_log.status == e.session_log.START] == [300]
    nan, big, small = events[-1].summary.value
    assert math.isnan(nan.simple_value) and math.isinf(big.simple_value) and (small.tag, small.simple_value) == ("eval/né", -0.5)


def test_an_object_store_gets_whole_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(seal, "is_remote", lambda path: str(path).startswith(str(tmp_path)))
    writer = Writer(tmp_path, 0)
    writer.write(1, {"a": 1.0})
    local = writer._folder
    assert read(tmp_path) == [] and local != tmp_path
    writer.sync()
    assert read(tmp_path) == [{"step": 1, "a": 1.0}]
    writer.write(2, {"a": 2.0})
    writer.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2] and not local.exists()
    assert write(tmp_path, 2, [2, 3]).reached == 3
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    write(tmp_path, 0, [1])
    stream = io.StringIO()
    bar = Progress(10, stream=stream)
    bar.show(9, 1.0, Clock())
    bar.evaluated(9, {"eval/test/loss": 1.0})
    bar.close()
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


class Time:
    """A clock that moves when told."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def train(clock, now, steps, step_s=0.1, wait_s=0.05, examples=8):
    for _ in range(steps):
        with clock.span("input_wait"):
            now.at += wait_s
        with clock.span("dispatch"):
            now.at += step_s
        clock.step(examples)


def test_clock_accounts_for_every_second():
    now = Time()
    clock = Clock(started=97.0, now=now)
    now.at += 2  # 5 s since the command started
    with clock.span("evaluate"):
        now.at += 3
        with clock.span("compile"):
            now.at += 4
    assert clock.report(0) == {} and clock.remaining(5) is None
    with clock.span("compile"):
        now.at += 6
    clock.step(8)
    train(clock, now, 10)
    with clock.span("save"):
        now.at += 2.5
    found = clock.report(10)
    expected = {"start_up_s": 5, "evaluate_s": 3, "compile_s": 10, "input_wait_s": 0.5, "dispatch_s": 1, "save_s": 2.5, "replayed_s": 0,
                "elapsed_s": 22, "train_s": 1.5, "step_ms": 150, "examples_per_sec": 80 / 1.5, "input_wait_share": 1 / 3, "goodput": 1 / 22}
    assert found == pytest.approx({f"perf/{name}": value for name, value in expected.items()})
    assert clock.remaining(5) == pytest.approx(5 * 0.4)
    train(clock, now, 4, step_s=0.2, wait_s=0)
    found = clock.report(14)
    assert (found["perf/step_ms"], found["perf/train_s"], found["perf/input_wait_share"]) == pytest.approx((200, 0.8, 0))
    assert found["perf/elapsed_s"] == pytest.approx(22.8) and clock.remaining(1) == pytest.approx((0.7 * 4 + 0.8) / (0.7 * 10 + 4))
    assert "8 % of 23 s" in clock.goodput() and "compile 10.0 s" in clock.goodput() and "replayed" not in clock.goodput()
    before = dict(clock.rate)
    assert clock.report(14)["perf/train_s"] == 0 and clock.rate == before  # an empty window keeps the last rates


def test_steps_an_earlier_attempt_had_logged_are_replayed():
    now = Time()
    clock = Clock(now=now)
    clock.resume(reached=21)
    clock.step(8)
    train(clock, now, 10)
    assert clock.report(20)["perf/replayed_s"] == pytest.approx(1.0)
    train(clock, now, 10)
    found = clock.report(30)
    assert found["perf/replayed_s"] == pytest.approx(1.0) and found["perf/goodput"] == pytest.approx(1 / 3)
    assert found["perf/train_s"] == pytest.approx(1.5)


def test_training_seconds_add_up_over_attempts(tmp_path):
    now = Time()
    for resume, end in ((0, 30), (20, 40)):
        writer, clock = Writer(tmp_path, resume), Clock(now=now)
        clock.step(8)
        for step in range(resume, end, 10):
            train(clock, now, 10)
            writer.write(step, clock.report(step))
        writer.close()
    assert metrics.training_seconds(tmp_path) == pytest.approx(4 * 1.5)


def test_a_span_counts_when_its_block_raises():
    now = Time()
    clock = Clock(now=now)
    with pytest.raises(KeyError), clock.span("save"):
        now.at += 2
        raise KeyError
    clock.step(1)
    assert clock.report(0)["perf/save_s"] == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def clock_with_rates():
    now = Time()
    clock = Clock(now=now)
    clock.step(8)
    train(clock, now, 10)
    clock.report(10)
    return clock


def test_progress_is_rewritten_in_place_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream, clock = Terminal(), clock_with_rates()
    bar = Progress(1000, stream=stream, now=lambda: 0.0)
    bar.show(99, 103.25, clock)
    bar.show(199, 102.0, clock)
    assert stream.getvalue().count("\n") == 0
    last = stream.getvalue().split("\r\x1b[K")[-1]
    assert last == "step 200/1000  20 %  loss 102  53 examples/s  input wait 33 %  ETA 2 min 0 s"
    bar.evaluated(200, {"eval/test/loss": 1.5, "eval/test/kl": 3.0})
    assert stream.getvalue().endswith("\r\x1b[Kstep 200  test/loss 1.5\n")
    bar.show(299, float("nan"), clock)
    bar.close()
    bar.close()
    assert "loss nan" in stream.getvalue() and stream.getvalue().count("\n") == 2
    monkeypatch.setenv("COLUMNS", "20")
    bar.show(300, 1.0, clock)
    assert stream.getvalue().split("\r\x1b[K")[-1] == "step 301/1000  30 %"


def test_progress_does_not_flood_a_log():
    now, stream = Time(), io.StringIO()
    bar = Progress(100, stream=stream, quiet_s=10, now=now)
    for step in range(100):
        bar.show(step, 1.0, Clock())
        now.at += 1
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_control_characters_in_names_are_escaped():
    stream = io.StringIO()
    Progress(1, stream=stream).evaluated(0, {"eval/\x1b[2J\nété\udc80/x": 1.0})
    assert stream.getvalue() == "step 0  \\x1b[2J\\nété\\udc80/x 1\n"


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7380, "2 h 3 min"), (363600, "4 d 5 h")])
def test_duration(seconds, text):
    assert metrics.duration(seconds) == text
