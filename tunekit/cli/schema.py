"""`tunekit schema`: the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import only_json


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("schema")(schema)


def schema(
    output: Annotated[str | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
) -> None:
    """Write the JSON Schema of recipes over everything installed."""
    from ..recipe import json_schema
    from ..record import write_text

    if output is None:
        with only_json() as write:
            write(json_schema())
    else:
        write_text(Path(output), json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
