"""Losses of strangers, from wheels: a stateful, batch-coupled one in under 40 lines, and one with a need of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_new import NEEDED, ROOT, Fresh

BASELINE = '''
import torch
from tunekit_train import ReferenceLogProbs, Objective, Stage, Sum, Sums, TokenLogProbs, TrainConfig


class Advantage(Objective):
    """Prefers the chosen answer where its gain beats the batch's, and the run's, on average."""

    couples_batch = True
    needs = (TokenLogProbs(), ReferenceLogProbs())

    def __init__(self):
        self.mean = torch.zeros(())

    def weight(self, batch):
        return len(batch.items)

    def sums(self, batch, provided):
        policy, reference = (provided[need].sums(len(batch.sequences)) for need in self.needs)
        margin = (policy - reference).view(-1, 2) @ torch.tensor([1.0, -1.0])
        level = 0.5 * margin.detach().mean() + 0.5 * self.mean
        told = {"margin": Sum(float(margin.detach().sum()), len(margin))}
        return Sums(-torch.nn.functional.logsigmoid(margin - level).sum(), told)

    def observe(self, metrics):
        self.mean = 0.9 * self.mean + 0.1 * metrics["margin"].total / metrics["margin"].weight

    def state(self):
        return {"mean": self.mean}

    def load_state(self, state):
        self.mean = state["mean"]


class Baseline(Stage[TrainConfig]):
    provides, kinds = frozenset({"stage.baseline"}), frozenset({"preference"})
    objective = staticmethod(Advantage)
'''

ENTROPY = '''
from dataclasses import dataclass

from tunekit_train import Need, Objective, Source, Stage, Sum, Sums, TokenLogProbs, TrainConfig


class Start(Source):
    """Remembers how many parameters train."""

    def __init__(self, count):
        self.count = count

    def facts(self):
        return {"entropy_of": self.count}


@dataclass(frozen=True)
class Entropy(Need):
    """Entropy of the prediction at every supervised position, [supervised]."""

    def logits_at(self, layout):
        return layout.positions

    def prepare(self, job, checkpoint):
        return Start(sum(each.numel() for each in job.bundle.model.parameters() if each.requires_grad))

    def provide(self, forward):
        log_probs = forward.logits(forward.layout.positions).float().log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


class Confident(Objective):
    """Cross-entropy that keeps some entropy."""

    needs = (TokenLogProbs(), Entropy())

    def weight(self, batch):
        return batch.supervised_tokens

    def sums(self, batch, provided):
        scores, entropy = (provided[need] for need in self.needs)
        told = {"entropy": Sum(float(entropy.detach().sum()), len(entropy))}
        return Sums(-scores.log_probs.sum() - 0.01 * entropy.sum(), told)


class EntropyStage(Stage[TrainConfig]):
    provides = frozenset({"stage.entropy"})
    objective = staticmethod(Confident)
'''

BESIDES = ["tunekit-lora", "tunekit-precision", "tunekit-templates"]
STAGES = {"baseline": (BASELINE, "Baseline"), "entropy": (ENTROPY, "EntropyStage")}
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
dependencies = ["tunekit-core", "tunekit-train"]

[project.entry-points.tunekit]
{name} = "{name}:{stage}"
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """An environment with our wheels and those of two strangers."""
    from tunekit.testing import save_tiny_model

    fresh = Fresh(tmp_path_factory.mktemp("fresh"))
    fresh.install(ROOT, *(ROOT / "plugins" / name for name in [*NEEDED, *BESIDES]))
    for name, (code, stage) in STAGES.items():
        package = fresh.folder / name / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
        (package.parent / "pyproject.toml").write_text(PYPROJECT.format(name=name, stage=stage))
    fresh.install(*(fresh.folder / name for name in STAGES))
    save_tiny_model(fresh.folder / "model")
    rows = [
        {"prompt": f"Which of all the numbers is {number}?", "chosen": f"It is {number}.", "rejected": "I forget."}
        for number in range(8)
    ]
    (fresh.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (fresh.folder / "texts.jsonl").write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in rows))
    return fresh


def train(fresh: Fresh, stage: str, data: str) -> dict[str, object]:
    options = "{epochs: 6, learning_rate: 0.02, batch: {rows: 2, accumulation: 2}}"
    (fresh.folder / f"{stage}.yaml").write_text(
        f"model: model\ndata: {data}\nuse: {{lora: {{rank: 4}}}}\n"
        f"stages: [{{{stage}: {options}}}]\noutput: run-{stage}\n"
    )
    told: dict[str, object] = json.loads(fresh.run("tunekit", "train", f"{stage}.yaml", "--json"))["stages"][0]
    return told


def facts(fresh: Fresh, stage: str) -> dict[str, object]:
    found = [json.loads(path.read_text()) for path in (fresh.folder / f"run-{stage}").glob("*.json")]
    text = json.dumps(found)
    (told,) = [each["facts"] for each in _stages(found)]
    assert "couples_batch" in text
    return dict(told)


def _stages(values: object) -> list[dict[str, dict[str, object]]]:
    """Every mapping with facts, wherever it is."""
    if isinstance(values, dict):
        return [values] if "facts" in values else [each for value in values.values() for each in _stages(value)]
    return [each for value in values for each in _stages(value)] if isinstance(values, list) else []


def test_the_loss_is_short() -> None:
    assert sum(1 for line in BASELINE.splitlines() if line.strip()) < 40


def test_a_stateful_coupled_loss_gets_what_the_engine_has(fresh: Fresh) -> None:
    stage = train(fresh, "baseline", "pairs.jsonl")
    assert stage["metrics"]["train_loss_last"] < stage["metrics"]["train_loss_first"]  # type: ignore[index]
    told = facts(fresh, "baseline")
    assert (told["strategy"], told["share_prompts"], told["couples_batch"]) == ("segments", True, True)
    assert told["reference"] == "cached"
    assert told["lora_product_layers"] == 14, "every linear layer of both blocks is one product"
    plan = json.loads(fresh.run("tunekit", "plan", "baseline.yaml", "--json"))
    assert "2 micro-batches of 2 are not one batch of 4" in json.dumps(plan)


def test_a_need_of_its_own_is_provided_and_recorded(fresh: Fresh) -> None:
    stage = train(fresh, "entropy", "texts.jsonl")
    assert stage["metrics"]["train_loss_last"] < stage["metrics"]["train_loss_first"]  # type: ignore[index]
    assert facts(fresh, "entropy")["entropy_of"] > 0  # type: ignore[operator]
    lines = [json.loads(line) for line in Path(fresh.folder / "run-entropy" / "metrics.jsonl").read_text().splitlines()]
    assert all("entropy" in line for line in lines if line.get("kind") == "step" or "grad_norm" in line)
