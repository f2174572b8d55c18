"""The processes of a run: started with their places, ended together, one reason told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tunekit import errors
from tunekit.launching import make_launch, tell_error
from tunekit.record import append_line
from tunekit.values import Event
from tunekit_distributed import crew as crew_module
from tunekit_distributed.crew import Crew


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(crew_module, "PATIENCE", 1.0)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    yield
    signal.signal(signal.SIGINT, before)


def crew_of(folder, script, count=2, watchers=()):
    launch = make_launch(folder, watchers)
    object.__setattr__(launch, "command", (sys.executable, "-c", script, str(folder)))
    return Crew(launch, count, "cpu")


def test_each_process_is_told_its_place_and_a_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "DS_ACCELERATOR")
    script = f"import os, json; print(json.dumps([os.environ[name] for name in {names}]))"
    crew_of(tmp_path, script).work()
    told = [json.loads((tmp_path / "processes" / f"output-{rank}.txt").read_text()) for rank in (0, 1)]
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert told == [[str(rank), str(rank), "2", "2", threads, "cpu"] for rank in (0, 1)]


def test_what_one_process_raises_ends_the_others_and_is_raised_once(tmp_path):
    script = """
import os, sys, time
from pathlib import Path
from tunekit.errors import DivergedError
from tunekit.launching import tell_error
if os.environ["RANK"] == "1":
    tell_error(Path(sys.argv[1]), 1, DivergedError("the loss is nan", "lower it"))
    sys.exit(3)
time.sleep(60)
"""
    start = time.monotonic()
    with pytest.raises(errors.DivergedError, match=r"^the loss is nan; lower it$"):
        crew_of(tmp_path, script).work()
    assert time.monotonic() - start < 30


def test_the_first_of_several_errors_is_the_one_that_is_told(tmp_path):
    launch = make_launch(tmp_path, ())
    tell_error(tmp_path, 1, errors.DataError([errors.Problem("a.json, row 3", "is empty", "fill it")]))
    tell_error(tmp_path, 0, RuntimeError("connection closed by peer"))
    with pytest.raises(errors.DataError, match="row 3: is empty; fill it"):
        launch.stop_on_error()


def test_a_process_that_dies_without_a_word_is_named_with_its_output(tmp_path):
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(errors.TunekitError, match=r"process 0 of 1 was ended by SIGKILL .*output-0\.txt"):
        crew_of(tmp_path, script, count=1).work()


def test_ctrl_c_reaches_each_process_once_and_waits_for_them(tmp_path):
    script = """
import os, signal, sys, time
from pathlib import Path
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
Path(sys.argv[1], "ready-" + os.environ["RANK"]).touch()
while not heard:
    time.sleep(0.02)
time.sleep(0.5)
print("heard", len(heard))
"""

    def interrupt():
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    crew_of(tmp_path, script).work()
    thread.join()
    told = [(tmp_path / "processes" / f"output-{rank}.txt").read_text() for rank in (0, 1)]
    assert told == ["heard 1\n"] * 2


def test_processes_whose_parent_is_killed_stop_as_after_ctrl_c(tmp_path):
    script = """
import os, sys, threading, time
from pathlib import Path
from tunekit.launched import _stop_when_orphaned
threading.Thread(target=_stop_when_orphaned, daemon=True).start()
Path(sys.argv[1], "ready").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path(sys.argv[1], "stopped").touch()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {script!r}, "
         f"{str(tmp_path)!r}], stdin=subprocess.PIPE)\ntime.sleep(60)"]
    )  # fmt: skip
    wait_for(tmp_path / "ready")
    parent.kill()
    parent.wait()
    wait_for(tmp_path / "stopped")


def test_a_process_of_a_run_in_the_background_of_a_shell_stops_when_its_parent_has_gone(tmp_path):
    script = """
import runpy, signal, sys, time
from tunekit import engine
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as such a shell starts what it starts
engine.take_part = lambda folder: time.sleep(60)
runpy.run_module("tunekit.launched", run_name="__main__")
"""
    start, environment = time.monotonic(), {**os.environ, "RANK": "0"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert b"KeyboardInterrupt" in done.stderr
    assert time.monotonic() - start < 30


def test_watchers_hear_each_event_of_the_first_process_once(tmp_path):
    heard: list[Event] = []
    launch = make_launch(tmp_path, [heard.append])
    event = {"kind": "step", "stage": "sft", "step": 1, "total_steps": 2, "metrics": {"loss": float("nan")}}
    append_line(tmp_path / "processes" / "events.jsonl", event)
    launch.report()
    launch.report()
    append_line(tmp_path / "processes" / "events.jsonl", {**event, "step": 2, "metrics": {"loss": 0.5}})
    launch.report()
    assert [each.step for each in heard] == [1, 2]
    assert heard[0].metrics["loss"] != heard[0].metrics["loss"]
    assert heard[1].metrics["loss"] == 0.5


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.02)
