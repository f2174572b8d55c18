"""The demo as one function: ask, train, ask again, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine import Watcher
from ..pipeline import Pipeline, open_model
from ..run import Run, Talk
from .examples import Question, example_path, held_out, read_rows
from .grader import Grader

LONGEST_ANSWER = 56
"""Tokens; the answers of the training part are shorter."""


@dataclass(frozen=True)
class Outcome:
    """What the demo showed: questions with the answers before and after, the shares in character, and perplexities."""

    run: Run
    questions: tuple[Question, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    share_before: float
    share_after: float
    perplexity_before: float
    perplexity_after: float

    @property
    def worsening(self) -> float:
        """By what share the perplexity on general text rose."""
        return self.perplexity_after / self.perplexity_before - 1


def tell(
    output: str | Path,
    overrides: Iterable[str] = (),
    watchers: Sequence[Watcher] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run the demo into `output`. `say` is told what happens; `watchers` see the training."""
    pipeline = Pipeline.from_file(example_path("recipes", "quickstart.yaml"), overrides)
    questions, texts, grader = held_out(), [row["text"] for row in read_rows("general_text.jsonl")], Grader.shipped()
    say(f"asking {pipeline.recipe.model} {len(questions)} held-out questions")
    base = open_model(pipeline.recipe.model)
    before, perplexity_before = _ask(base, questions), base.perplexity(texts)
    del base
    say("fine-tuning")
    run = pipeline.run(output, watchers)
    say("asking the same questions again")
    after, perplexity_after = _ask(run, questions), run.perplexity(texts)
    return Outcome(
        run,
        tuple(questions),
        before,
        after,
        grader.share(questions, before),
        grader.share(questions, after),
        perplexity_before,
        perplexity_after,
    )


def _ask(model: Talk, questions: Sequence[Question]) -> tuple[str, ...]:
    answers = model.ask([question.text for question in questions], max_new_tokens=LONGEST_ANSWER)
    return tuple(answer.text for answer in answers)
