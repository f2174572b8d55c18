"""The program itself: its subcommands, those that plugins add, and how errors end it."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import certify, chat, data, demo, export, new, plan, plugins, resume, schema, train

if TYPE_CHECKING:
    from ..catalog import Catalog

HELP = "Fine-tune language models from plugins. Plan, then run."


class _Added(TyperCommand):
    """A plugin's subcommand: listed from metadata alone, imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return _command_of_plugin(str(self.name)).make_context(info_name, args, parent, **extra)


class _Program(TyperGroup):
    """The built-in subcommands, and those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_catalog().names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _catalog():
            found = _Added(cmd_name, help=f"From {_catalog().entry(cmd_name).distribution}.")
        return found


app = typer.Typer(cls=_Program, help=HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
for module in (demo, plan, data, train, resume, certify, chat, export, plugins, schema, new):
    module.add_to(app)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("tunekit-core"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Fine-tune language models from plugins. Plan, then run."""


def main() -> None:
    """Run the program; the exit code says how it ended (see the manual, Errors)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code is 0 well, 1 failed, 2 the user's mistake, 3 diverged, 130 stopped."""
    from ..errors import TunekitError

    # What libraries log below an error is for developers: shown with --debug.
    logging.basicConfig(level=logging.WARNING if "--debug" in arguments else logging.ERROR)
    try:
        result = app(arguments, standalone_mode=False)
    except TunekitError as error:
        if "--debug" in arguments:
            raise
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line
            error.show()
            return int(error.exit_code)
        if "--debug" in arguments:
            raise
        _complain(
            f"{type(error).__name__}: {error}\nthis looks like a mistake in tunekit or a plugin; --debug shows where"
        )
        return 1
    return result if isinstance(result, int) else 0


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(message))


def _catalog() -> Catalog:
    from ..catalog import COMMANDS, Catalog

    return Catalog.discover(group=COMMANDS)


def _command_of_plugin(name: str) -> Any:
    """Import the one plugin that offers this subcommand and let it add it."""
    from ..calls import Calls
    from ..errors import CatalogError
    from ..values import PlannedPlugin

    catalog = _catalog()
    entry = catalog.entry(name)
    planned = PlannedPlugin(name, catalog.load(name)(), entry.distribution, entry.version, "named", name)
    added = typer.Typer()
    for _ in Calls([planned]).each("tunekit_command", app=added):
        pass
    commands = typer.main.get_group(added).commands
    if name not in commands:
        raise CatalogError(f"{entry.distribution} offers the subcommand {name!r} but adds {sorted(commands)}")
    return commands[name]
