"""`tunekit export`: write a finished run in a format that others read, and see that it says what was trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .console import Json, console, only_json


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("export")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Such as merged, adapter, gguf or ollama.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="Options of it, such as dtype=bfloat16.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Where it goes; else RUN/exports/TARGET.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Name of one of the run's adapters; else its final one.")] = None,
    json: Json = False,
) -> None:
    """Export a run. What is written is read again and compared with what was trained; else there is no export."""
    from dataclasses import asdict

    from ..pipeline import open_run
    from ..record import plain

    given = _read(target, [*(options or ()), *([f"folder={output}"] if output else [])])
    with only_json() as write:
        made = open_run(run, adapter).export(target, **given)
        if json:
            write({"target": made.target, "folder": str(made.folder), **plain(asdict(made.verification))})
    if not json:
        console().print(made)


def _read(target: str, options: list[str]) -> dict[str, Any]:
    """The options as a recipe would hold them."""
    from ..recipe.overrides import apply_overrides_

    given: dict[str, Any] = {target: {}}
    apply_overrides_(given, [f"{target}.{option}" for option in options])
    return dict(given[target])
