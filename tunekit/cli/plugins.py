"""`tunekit plugins`: what is installed, and what is wrong with what is not usable."""

from __future__ import annotations

from dataclasses import asdict

import typer

from .console import Json, console, only_json


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("plugins")(plugins)


def plugins(json: Json = False) -> None:
    """List installed plugins and export targets: available, broken, disabled or duplicate."""
    from ..catalog import EXPORTS, Catalog
    from ..display import Section, terminal

    with only_json() as write:
        listing = [*Catalog.discover().listing(), *Catalog.discover(group=EXPORTS).listing()]
        if json:
            write([asdict(row) for row in listing])
    if json:
        return
    rows = tuple(
        (row.name, row.status, f"{row.distribution} {row.version}", row.summary,
         ", ".join(hook.removeprefix("tunekit_") for hook in row.hooks))
        for row in listing
    )  # fmt: skip
    console().print(terminal([Section("Plugins", ("name", "status", "distribution", "what", "hooks"), rows)]))
