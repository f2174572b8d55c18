"""`tunekit resume`: go on with a run that was interrupted."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, console, only_json
from .train import outcome, show_outcome


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("resume")(resume)


def resume(folder: Annotated[str, typer.Argument(help="Folder of the run.")], json: Json = False) -> None:
    """Continue an interrupted run to the numbers it would have reached."""
    from ..launching import first_here
    from ..pipeline import resume_run
    from .progress import ProgressBar

    if not first_here():  # of several processes, the first talks to the user
        resume_run(folder)
        return
    if json:
        with only_json() as write:
            write(outcome(resume_run(folder)))
        return
    screen = console()
    with ProgressBar(screen) as bar:
        run = resume_run(folder, watchers=[bar])
    show_outcome(screen, run)
