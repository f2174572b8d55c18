"""What a launcher starts: `python -m tunekit.launched FOLDER` takes part in the run in that folder."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from . import engine
from .errors import TunekitError
from .launching import tell_error


def main(folder: Path, rank: int) -> int:
    """Take part; the exit code says how it ended, as that of the program does."""
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    try:
        engine.take_part(folder)
    except BaseException as error:
        # Another process that loses its connection to this one must not be the first to complain.
        tell_error(folder, rank, error)
        traceback.print_exc()
        return error.exit_code if isinstance(error, TunekitError) else 1
    return 0


def _stop_when_orphaned() -> None:
    """Stop as Ctrl-C does when whoever wanted the run is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the run in the background
    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"])))
