"""`tunekit data`: look at what a model would learn from."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, Overrides, Recipe, console, only_json

Stage = Annotated[str | None, typer.Option(help="Only this stage: its name, or its number from 0.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of each source.")]
Show = Annotated[int | None, typer.Option(min=1, help="Show the first so many examples token by token.")]
Row = Annotated[int | None, typer.Option(min=1, help="Show the row of this number token by token.")]
Picture = Annotated[str | None, typer.Option(metavar="FILE", help="Draw the lengths of the sequences, as PNG.")]


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("data")(data)


def data(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Stage = None,
    limit: Limit = None,
    show: Show = None,
    row: Row = None,
    picture: Picture = None,
    json: Json = False,
) -> int:
    """Prepare all data of a recipe and show what became of every row, without loading a weight."""
    from ..errors import DataError
    from ..pipeline import Pipeline

    with only_json() as write:
        report = Pipeline.from_file(recipe, overrides or ()).data(stage, limit)
        shown = report.show(show or 0, row=row) if show or row else None
        if picture:
            report.draw_lengths(picture)
        if json:
            write({**report.to_mapping(), **({"shown": shown.to_mapping()} if shown is not None else {})})
    if not json:
        screen = console()
        screen.print(report)
        if shown is not None:
            screen.print(shown)
        if picture:
            screen.print(f"picture: {picture}", markup=False)
    return 0 if report.ok else DataError.exit_code
