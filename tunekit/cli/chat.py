"""`tunekit chat`: talk to a run, or to a model as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, console, only_json

if TYPE_CHECKING:
    from ..run import Talk
    from ..values import Message


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("chat")(chat)


def chat(
    what: Annotated[str, typer.Argument(help="Folder of a run, or a model: hub id, folder, pkg:<package>.")],
    adapter: Annotated[str | None, typer.Option(help="Name of one of the run's adapters; else its final one.")] = None,
    ask: Annotated[list[str] | None, typer.Option("--ask", "-a", help="Ask this and end; may be given often.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    json: Json = False,
) -> None:
    """Talk to a model. Lines of standard input are asked one after the other where it is not a terminal."""
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    with only_json() as write:
        model = _open(what, adapter)
        if json:
            prompts = [(question, _opening(system, question)) for question in ask or _lines()]
            write([{"question": question, "answer": model.chat(prompt, **settings)} for question, prompt in prompts])
    if json:
        return
    answer = partial(_stream, model, settings)
    if ask or not sys.stdin.isatty():
        for question in ask or _lines():
            answer(_opening(system, question))
    else:
        _converse(answer, system)


def _stream(model: Talk, settings: dict[str, Any], history: list[Message]) -> str:
    """Answer on the screen, piece by piece."""
    pieces = []
    for piece in model.stream(history, **settings):
        sys.stdout.write(piece)
        sys.stdout.flush()
        pieces.append(piece)
    sys.stdout.write("\n")
    return "".join(pieces)


def _lines() -> list[str]:
    """The questions on standard input."""
    return [line.strip() for line in sys.stdin if line.strip()]


def _open(what: str, adapter: str | None) -> Talk:
    from ..errors import RunFolderError
    from ..pipeline import open_model, open_run

    if (Path(what) / "run.json").exists():
        return open_run(what, adapter)
    if adapter is not None:
        raise RunFolderError(f"{what} is no run, and has no adapter named {adapter!r}", "name the folder of a run")
    return open_model(what)


def _opening(system: str | None, question: str) -> list[Message]:
    from ..values import Message

    return [*([Message("system", system)] if system else []), Message("user", question)]


def _converse(answer: Callable[[list[Message]], str], system: str | None) -> None:
    """Ask at the prompt until an empty line; the whole conversation so far goes with each question."""
    from ..values import Message

    screen = console()
    screen.print("[dim]an empty line ends the conversation[/dim]")
    history: list[Message] = [Message("system", system)] if system else []
    while question := screen.input("[bold cyan]> [/bold cyan]").strip():
        history.append(Message("user", question))
        history.append(Message("assistant", answer(history)))
