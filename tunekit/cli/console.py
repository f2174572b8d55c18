"""What the subcommands share: the console, JSON output, and arguments used by more than one."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, YAML or JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Overrides, such as use.lora.rank=4.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for a script to read.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Run folder; else the recipe's output.")]


def console() -> Console:
    """The console for people. Wide enough for tables where the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextlib.contextmanager
def only_json() -> Iterator[Callable[[Any], None]]:
    """Keep standard output for one JSON document: what libraries print meanwhile goes to standard error."""
    out = sys.stdout

    def write(value: Any) -> None:
        out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    with contextlib.redirect_stdout(sys.stderr):
        yield write
