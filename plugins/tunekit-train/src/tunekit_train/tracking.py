"""Trackers while a stage trains: a run of theirs for each stage, and a failure that says whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any

from tunekit.errors import TunekitError

SOURCE = "transformers.integrations.integration_utils"
"""Where transformers feeds trackers."""
Ending = tuple[Callable[[Any], Any], Callable[[Any, bool], Any]]
ENDINGS: Mapping[str, Ending] = {
    "mlflow": (lambda mlflow: mlflow.active_run(), lambda mlflow, ok: mlflow.end_run("FINISHED" if ok else "FAILED")),
    "swanlab": (lambda swanlab: swanlab.get_run(), lambda swanlab, ok: swanlab.finish()),
    "wandb": (lambda wandb: wandb.run, lambda wandb, ok: wandb.finish(exit_code=0 if ok else 1)),
}
"""Of trackers with a run that is the process's own: how to see whether there is one, and how to end it.

transformers takes the one that is there, so that a second stage would go on in the first one's, its steps mixed with
those, or dropped because they are smaller. Trackio ends by itself.
"""


@contextmanager
def tracking(trackers: Sequence[str], key: str) -> Iterator[None]:
    """End the tracker runs that a stage has begun; one that the user has begun before stays open, and is theirs.

    Raises TunekitError, naming the tracker, where one fails.
    """
    begun = {name: import_module(name) for name in trackers if name in ENDINGS}
    mine = {name: module for name, module in begun.items() if ENDINGS[name][0](module) is None}
    finished = False
    try:
        yield
        finished = True
    except TunekitError:
        raise
    except Exception as error:
        failed = _callback(error.__traceback__)
        if failed is None:
            raise
        what = f"{key}.log.trackers: {failed} failed: {type(error).__name__}: {error}"
        raise TunekitError(what, "see to its own settings (its environment variables), or leave it out") from error
    finally:
        for name, module in mine.items():
            if ENDINGS[name][0](module) is not None:
                ENDINGS[name][1](module, finished)


def _callback(traceback: TracebackType | None) -> str | None:
    """The tracker in whose callback of transformers an error came up."""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == SOURCE and "self" in frame.f_locals:
            return type(frame.f_locals["self"]).__name__.removesuffix("Callback")
        traceback = traceback.tb_next
    return None
