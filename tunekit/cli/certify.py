"""`tunekit certify`: show that a recipe, killed and resumed, reaches the bits of a run that nothing stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, Overrides, Recipe, console, only_json


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("certify")(certify)


def certify(
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", "-k", min=1, help="Steps before the kill in each stage.")] = 2,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of both runs and the report; else runs/certificate.")
    ] = None,
    json: Json = False,
) -> int:
    """Train in one go and with a kill and a resume between, and compare bit by bit; ends with 1 if they differ."""
    from dataclasses import asdict

    from ..pipeline import Pipeline
    from ..run import next_folder

    pipeline = Pipeline.from_file(recipe, overrides or ())
    with only_json() as write:
        found = pipeline.certify(output or next_folder("runs/certificate"), steps)
        if json:
            write({"ok": found.ok, "verdict": found.verdict, "folder": str(found.folder),
                   "parts": [asdict(part) for part in found.parts]})  # fmt: skip
    if not json:
        screen = console()
        screen.print(found)
        screen.print(f"report: {found.folder / 'certificate.json'}")
    return 0 if found.ok else 1
