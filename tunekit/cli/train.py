"""`tunekit train`: carry out a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .console import Json, Output, Overrides, Recipe, console, only_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..run import Run


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("train")(train)


def train(recipe: Recipe, overrides: Overrides = None, output: Output = None, json: Json = False) -> None:
    """Plan a recipe, then run it."""
    from ..launching import first_here
    from ..pipeline import Pipeline
    from .progress import ProgressBar

    pipeline = Pipeline.from_file(recipe, overrides or ())
    if not first_here():  # of several processes, the first talks to the user
        pipeline.run(output)
        return
    if json:
        with only_json() as write:
            write(outcome(pipeline.run(output)))
        return
    screen = console()
    with ProgressBar(screen) as bar:
        run = pipeline.run(output, watchers=[bar])
    show_outcome(screen, run)


def outcome(run: Run) -> dict[str, object]:
    """How a run ended, as plain data."""
    return {"folder": str(run.folder), **run.record.state}


def show_outcome(screen: Console, run: Run) -> None:
    """Tell how a run ended and what to do next."""
    from ..display import Section, size, terminal

    state = run.record.state
    rows = [
        (stage["name"], name, f"{value:.5g}") for stage in state["stages"] for name, value in stage["metrics"].items()
    ]
    screen.print(terminal([Section("Results", ("stage", "metric", "value"), tuple(rows))]))
    memory = state.get("memory")
    if memory:
        screen.print(f"peak memory: estimated {size(memory['estimated'])}, measured {size(memory['measured'])}")
    for stage in state["stages"]:
        for artefact in stage["artefacts"]:
            screen.print(f"{artefact['kind']}: {run.folder / artefact['path']}")
    for name, folder in run.exports.items():
        screen.print(f"export {name}: {folder}")
    screen.print(f"talk to it: [bold]tunekit chat {run.folder}[/bold]")
