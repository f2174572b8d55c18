"""The processes of a run, started on this machine, and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tunekit.errors import InterruptedRunError, TunekitError
from tunekit.values import Launch

POLL = 0.1
"""Seconds between two looks at the processes."""
PATIENCE = 15.0
"""Seconds that the others have to end by themselves once one has failed, and again once they were told to."""


class Crew:
    """Processes on this machine, each executing the command of a launch."""

    def __init__(self, launch: Launch, count: int, device: str) -> None:
        self.launch, self.count, self.device = launch, count, device

    def work(self) -> None:
        """Start them and wait until all have ended. Raises what the first to fail has raised.

        Ctrl-C is passed on to each process once: it stops at the next step, after a checkpoint; the second Ctrl-C stops
        it at once.
        """
        with self._started() as crew:
            while any(each.poll() is None for each in crew) and not any(each.poll() for each in crew):
                try:
                    time.sleep(POLL)
                    self.launch.report()
                except KeyboardInterrupt:
                    _signal(crew, signal.SIGINT)
            _end(crew)
        self.launch.report()
        self.launch.stop_on_error()
        self._explain([each.returncode for each in crew])

    @contextmanager
    def _started(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Start one process after the other; none is left behind, whatever happens."""
        port, crew = _free_port(), list[subprocess.Popen[bytes]]()
        with contextlib.ExitStack() as stack:
            try:
                for rank in range(self.count):
                    told = stack.enter_context((self.launch.folder / "processes" / f"output-{rank}.txt").open("wb"))
                    crew.append(self._start(self._environment(rank, port), told))
                yield crew
            finally:
                _kill(crew)

    def _start(self, environment: Mapping[str, str], told: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in a terminal goes to all of one, and would be heard twice.
        return subprocess.Popen(
            self.launch.command,
            env=environment,
            stdin=subprocess.PIPE,  # closed when this process goes, which ends the run
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self.count))
        return {
            "OMP_NUM_THREADS": threads,
            **({"DS_ACCELERATOR": "cpu"} if self.device == "cpu" else {}),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }

    def _explain(self, codes: list[int | None]) -> None:
        failed = next(((rank, code) for rank, code in enumerate(codes) if code), None)
        if failed is None:
            return
        rank, code = failed
        where = self.launch.folder / "processes" / f"output-{rank}.txt"
        assert code is not None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGINT:
            raise InterruptedRunError("the run was stopped", f"continue it with `tunekit resume {self.launch.folder}`")
        raise TunekitError(f"process {rank} of {self.count} {how} and has told no reason", f"look into {where}")


def _end(crew: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the rest to end by themselves, as they do where a connection breaks; else tell them to."""
    until = time.monotonic() + PATIENCE
    while any(each.poll() is None for each in crew) and time.monotonic() < until:
        time.sleep(POLL)


def _kill(crew: list[subprocess.Popen[bytes]]) -> None:
    _signal(crew, signal.SIGTERM)
    _end(crew)
    _signal(crew, signal.SIGKILL)
    for each in crew:
        assert each.stdin is not None
        each.stdin.close()
        each.wait()


def _signal(crew: list[subprocess.Popen[bytes]], number: int) -> None:
    for each in crew:
        if each.poll() is None:
            each.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
