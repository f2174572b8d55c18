"""The page on optimisers: what each keeps, measured, and what each is for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contest import COLOURS, PICTURES
from optimizers_contenders import ROWS, TRIALS
from trials import run_all

STEPS = 2
HEAD = """# Optimisers

AdamW trains where nothing is said. Another one is named in a recipe, for the whole run or inside a stage:

```yaml
use: {{lora: {{rank: 16}}, loraplus: {{}}}}   # one optimiser for all stages
stages:
  - pretrain: {{use: {{muon: {{}}}}}}          # or one for this stage
```

## What they keep

Bytes of the states after {steps} steps of {rows} rows each, on all weights of SmolLM2-135M-Instruct in fp32 unless
said otherwise, with products in bf16; counted in the running optimiser, tensors that are shared once. Beside it what
the plan had expected, and the most memory that the process took: Python, weights, gradients and activations are in
it. `nox -s bench -- --only optimizers` measures it anew; the last time was with {versions}.

![States of the optimisers](pictures/optimizers.png)

| optimiser | trains | states | of AdamW's | expected | process |
|---|---:|---:|---:|---:|---:|
"""
FOOT = """
## Which one

| plugin | what it is for | source |
|---|---|---|
| `adamw` | the default; fused where the device has a kernel | arXiv 1711.05101 |
| `bnb-optimizer` | nearly the same steps in a quarter of the memory; pages; Lion, AdEMAMix | arXiv 2110.02861 |
| `torchao-optimizer` | the same in 8 or 4 bits, in plain PyTorch; random rounding for pure bf16 | arXiv 2309.01507 |
| `adam-mini` | half of AdamW's memory, one learning rate for each neuron or head | arXiv 2406.16793 |
| `muon` | hidden matrices by orthogonalised momentum: fewer steps where many are taken | arXiv 2502.16982 |
| `galore` | moments of low rank for all linear layers; a singular value problem now and then | arXiv 2403.03507 |
| `apollo` | the same without it: random sketches say how far each channel moves | arXiv 2412.05270 |
| `badam` | all weights, a block at a time: gradients are few as well | arXiv 2404.02827 |
| `loraplus` | LoRA's second factor learns faster | arXiv 2402.12354 |
| `schedule-free` | no schedule: weights are averaged instead, and the average is what counts | arXiv 2405.15682 |

Learning rate, weight decay, clipping and schedule are the stage's, whichever is named. Matrices decay; biases, norms
and other vectors do not. A run that is killed goes on to the same bits with each of them.

The embedding is a fifth of this model and a few percent of a large one: GaLore, APOLLO and Muon leave it to AdamW, so
their share falls as the model grows. A step of torchao that is not compiled makes whole copies of one weight at a time,
of which the embedding's are the largest: what the states save, the process takes for a moment.

Where they cannot work together, the plan says so: `galore`, `apollo` and `badam` train weights, not adapters;
`loraplus` needs `lora`; `badam` wants one process; and only those that treat each number by itself, `adamw` and
`loraplus`, go with ZeRO and FSDP, which hold gradients in parts. All but `badam` go with DDP.
"""


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run every optimiser once."""
    for runs in run_all("optimizers", TRIALS, folder / "alpaca_en_demo.json", options.model, STEPS):
        yield {"runs": runs}


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    runs = results["runs"]
    rows = [row(name, run, runs["adamw"]["state_bytes"]) for name, run in runs.items()]
    head = HEAD.format(steps=STEPS, rows=ROWS, versions=results["versions"])
    return head + "\n".join(rows) + "\n" + FOOT


def row(name: str, run: dict[str, Any], adamw: int) -> str:
    """One row of the table."""
    cells = (
        TRIALS[name].title,
        f"{run['trainable'] / 1e6:,.1f} M",
        mebibytes(run["state_bytes"]),
        f"{run['state_bytes'] / adamw:.1%}",
        mebibytes(run["estimated"]),
        f"{run['peak_bytes'] / 2**30:.2f} GiB",
    )
    return "| " + " | ".join(cells) + " |"


def mebibytes(size: float) -> str:
    """A size in MiB."""
    return f"{size / 2**20:,.1f} MiB"


def draw(results: dict[str, Any]) -> None:
    """A bar for each optimiser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(7.5, 0.28 * len(runs) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = [run["state_bytes"] / 2**20 for run in runs.values()]
    bars = axes.barh(range(len(sizes)), sizes, 0.72, color=COLOURS[0])
    axes.bar_label(bars, [f"{size:,.0f}" for size in sizes], fontsize=7.5, padding=3)
    axes.set_yticks(range(len(sizes)), [TRIALS[name].title for name in runs], fontsize=8)
    axes.invert_yaxis()
    axes.set_title("States of the optimiser, MiB", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    figure.savefig(PICTURES / "optimizers.png", dpi=150)
