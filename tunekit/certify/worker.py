"""The process that certifies: runs each leg in a process of its own, kills those that are to be killed, compares.

`python -m tunekit.certify.worker FOLDER` does it all; with the name of a run and `kill` or `on` after it, one leg.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ..engine import resume, start
from ..plan import make_plan
from ..recipe import from_file
from ..record import Record, read_json, write_json
from ..values import Event
from .certificate import Certificate
from .certifying import JOB, RECIPE
from .comparing import compare_runs

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
IMPORTED = "imported.json"
"""What the first leg has imported. The others are forked off a process that has imported it too, and done no more."""


class Killer:
    """A watcher that kills its process when a stage has its first checkpoint, at the event after the one that says so.

    A stage that had one before goes on from it, and is left alone.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.saved = run, False
        self.had = self.stages()

    def __call__(self, event: Event) -> None:
        if self.saved:
            os.kill(os.getpid(), KILL)
        self.saved = event.kind == "saved" and bool(self.stages() - self.had)

    def stages(self) -> set[Path]:
        """The folders of the stages that have a checkpoint."""
        return {path.parent for path in self.run.glob("stage-*/checkpoints/step-*")}


def main(arguments: list[str]) -> int:
    """Certify, or run one leg."""
    folder = Path(arguments[0])
    if len(arguments) > 1:
        leg(folder, arguments[1], arguments[2] == "kill")
        return 0
    job = read_json(folder / JOB)
    process = _forking if job["fork"] else _starting
    for name, kill in legs(job["stages"]):
        code = process(folder, name, kill)
        if code != (-KILL if kill else 0):
            print(f"the {name} run {_meant(kill, code, job['steps'])}")
            return 1
        if name == "whole" and process is _forking:
            _import_alike(folder)
    parts = compare_runs(folder / "whole", folder / "resumed")
    Certificate(folder, job["steps"], tuple(parts)).save()
    return 0


def _meant(kill: bool, code: int, steps: int) -> str:
    if kill and code == 0:
        return f"was to be killed, but a stage has no checkpoint within {2 * steps} steps; ask for more of them"
    return f"was to {'be killed after a checkpoint' if kill else 'come to its end'}, and ended with {code}"


def legs(stages: int) -> Iterator[tuple[str, bool]]:
    """One run in one go; another that is killed once in each stage, and then comes to its end."""
    yield "whole", False
    for _ in range(stages):
        yield "resumed", True
    yield "resumed", False


def leg(folder: Path, name: str, kill: bool) -> None:
    """Start a run, or go on with it, in this process."""
    run = folder / name
    watchers = [Killer(run)] if kill else []
    if run.exists():
        resume(make_plan(Record.open(run).recipe), run, watchers)
    else:
        start(make_plan(from_file(folder / RECIPE)), run, watchers)
    if name == "whole":
        write_json(folder / IMPORTED, sorted(sys.modules))


def _import_alike(folder: Path) -> None:
    """Import what a leg needs once instead of in each."""
    for module in read_json(folder / IMPORTED):
        if module not in sys.modules:
            with suppress(Exception):  # a name that some library made up for itself
                import_module(module)


def _forking(folder: Path, name: str, kill: bool) -> int:
    process = os.fork()
    if process == 0:
        _as_child(lambda: leg(folder, name, kill))
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def _as_child(work: Callable[[], None]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code)


def _starting(folder: Path, name: str, kill: bool) -> int:
    command = [sys.executable, "-m", "tunekit.certify.worker", str(folder), name, "kill" if kill else "on"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
