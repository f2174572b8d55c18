"""`tunekit plan`: say what a run would do and cost, or everything that is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, Overrides, Recipe, console, only_json


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("plan")(plan)


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option(help="Count parameters, look at the data, estimate memory.")] = True,
    json: Json = False,
) -> None:
    """Show what a recipe would do, without loading a weight."""
    from ..pipeline import Pipeline
    from ..record import plan_mapping

    with only_json() as write:
        made = Pipeline.from_file(recipe, overrides or ()).plan(estimate=estimate)
        if json:
            write(plan_mapping(made))
    if not json:
        console().print(made)
