"""`tunekit demo`: fine-tune a real model on this machine and see the difference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Json, Overrides, console, only_json

if TYPE_CHECKING:
    from ..demo import Outcome


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command("demo")(demo)


def demo(
    overrides: Overrides = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder.")] = "runs/demo",
    rows: Annotated[int, typer.Option(min=1, help="How many answers to show side by side.")] = 8,
    json: Json = False,
) -> None:
    """Fine-tune SmolLM2-135M-Instruct with LoRA, here and now, and compare its answers before and after."""
    from ..demo import tell
    from ..run import next_folder
    from .progress import ProgressBar

    start = time.monotonic()
    folder = next_folder(output)
    if json:
        with only_json() as write:
            write(outcome(tell(folder, overrides or ()), time.monotonic() - start))
        return
    screen = console()
    with ProgressBar(screen) as bar:
        told = tell(folder, overrides or (), [bar], screen.print)
    _show(told, rows)
    screen.print(f"done in {time.monotonic() - start:.0f} s")


def outcome(told: Outcome, seconds: float) -> dict[str, object]:
    """The outcome of the demo as plain data."""
    return {
        "folder": str(told.run.folder),
        "in_character_before": told.share_before,
        "in_character_after": told.share_after,
        "perplexity_before": told.perplexity_before,
        "perplexity_after": told.perplexity_after,
        "seconds": seconds,
        "answers": [
            {"question": question.text, "before": before, "after": after}
            for question, before, after in zip(told.questions, told.before, told.after, strict=True)
        ],
    }


def _show(told: Outcome, rows: int) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    table = Table(
        title="Held-out questions, asked in words the training part never uses", box=box.ROUNDED, show_lines=True
    )
    for title, style in (("question", "cyan"), ("before", "dim"), ("after", "green")):
        table.add_column(title, style=style, ratio=1, overflow="fold")
    step = max(1, len(told.questions) // rows)
    for index in range(0, min(len(told.questions), rows * step), step):
        table.add_row(*map(Text, (told.questions[index].text, told.before[index], told.after[index])))
    screen.print(table)
    screen.print(f"answered in character: {told.share_before:.0%} before, [bold]{told.share_after:.0%}[/bold] after")
    screen.print(
        f"perplexity on general text: {told.perplexity_before:.2f} before, {told.perplexity_after:.2f} after "
        f"({told.worsening:+.1%})"
    )
    curve = told.run.record.artefact("picture")
    if curve is not None:
        screen.print(f"loss curve: {curve}")
    screen.print(f"talk to it: [bold]tunekit chat {told.run.folder}[/bold]")
