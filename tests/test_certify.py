"""The resume certificate: every stage, killed with -9 and resumed, and what is said of one that cannot resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tunekit as tk
from tunekit.catalog import Catalog
from tunekit.certify import Certificate, certify
from tunekit.certify.comparing import compare_runs, difference
from tunekit.certify.worker import _meant
from tunekit.cli.app import run as program
from tunekit.errors import PlanError, RunFolderError, TunekitError
from tunekit.recipe import from_mapping
from tunekit.testing import save_tiny_model
from tunekit_train import Stage

TALKS = [
    {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, plainly."} for number in range(9)
]
PAIRS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}, said well.", "rejected": "No idea."} for n in range(9)]
LABELLED = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(9)]
TEXTS = [{"text": "The quick brown fox jumps over the lazy dog. " * 2} for _ in range(9)]
OPTIONS: dict[str, Any] = {
    "batch": {"rows": 2, "accumulation": 2},
    "learning_rate": 1e-2,
    "evaluate": {"share": 0.3, "every": 2},
}
DATA = {"pretrain": TEXTS, "sft": None, "ppo": None, "kto": LABELLED}
ADAPTERS = {"reward": "reward", "dpo": "reference"}
"""Stages that train an adapter of their own beside the others'."""


def stages() -> list[str]:
    """Every installed stage of ours that trains on the engine."""
    catalog = Catalog.discover()
    rows = (row for row in catalog.listing() if row.distribution.startswith("tunekit-"))
    names = [row.name for row in rows if row.status == "available" and issubclass(catalog.load(row.name), Stage)]
    return sorted(names, key=lambda name: (name != "reward", name))  # what it has learnt rewards the answers of ppo


def described(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {**OPTIONS, **({} if name not in ADAPTERS else {"adapter": ADAPTERS[name]})}
    if name == "pretrain":
        options["batch"] = {**options["batch"], "max_length": 24}
    if name == "ppo":
        options["evaluate"] = {}
        options.update(reward={"adapter": "reward"}, rollout={"prompts": 4, "epochs": 1, "max_new_tokens": 4})
    data = DATA.get(name, PAIRS)
    return {name: options if data is None else {**options, "data": {"rows": data}}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All stages in one chain, with dropout: what draws random numbers has to draw the same."""
    model = save_tiny_model(tmp_path_factory.mktemp("certify") / "model")
    use = {"lora": {"rank": 4, "dropout": 0.1}, "precision": {"compute": "fp32"}}
    chain = [described(name) for name in stages()]
    return {"model": str(model), "data": {"rows": TALKS}, "use": use, "stages": chain, "seed": 3}


@pytest.fixture(scope="module")
def certificate(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certify(from_mapping(recipe), tmp_path_factory.mktemp("runs") / "all", steps=1)


@pytest.mark.parametrize("name", stages())
def test_a_stage_that_is_killed_and_resumed_reaches_the_same_bits(name: str, certificate: Certificate) -> None:
    parts = {part.what: part for part in certificate.parts if part.stage.split()[1] == name}
    assert not [part for part in parts.values() if part.difference]
    wanted = {"data order", "metrics", "optimiser", "random numbers", "weights in checkpoints", "other state"}
    assert set(parts) == {*wanted, "weights", "results"}
    assert parts["metrics"].compared >= 3 + (2 if described(name)[name]["evaluate"] else 0), "steps, and evaluations"
    assert parts["optimiser"].compared == 2 * 2, "optimiser and schedule, at k and 2k"
    assert parts["random numbers"].compared == 2
    assert parts["weights"].compared >= 1


def test_every_stage_was_killed_once(certificate: Certificate) -> None:
    """Each call of a stage that began and did not end is one that a kill cut off: the record holds ended calls only."""
    calls = {
        name: [
            json.loads(line)["hook"] for line in (certificate.folder / name / "calls.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "resumed")
    }
    prepared = {name: hooks.count("tunekit_load_model") for name, hooks in calls.items()}
    assert prepared == {"whole": 1, "resumed": 1 + len(stages())}


OWN_ANSWERS: dict[str, dict[str, Any]] = {
    # Steps 1 to 4 learn twice from the first answers; what is saved after them has a coefficient that has adapted.
    "ppo": {
        "rollout": {"prompts": 4, "epochs": 2, "max_new_tokens": 4},
        "batch": {"rows": 2},
        "kl": {"control": "adaptive", "target": 0.1, "horizon": 8},
        "evaluate": {"share": 0.3, "every": 2},
    },
    "grpo": {"num_generations": 2, "max_completion_length": 4, "batch": {"rows": 2}},
    "rloo": {"num_generations": 2, "max_completion_length": 4, "batch": {"rows": 2}},
}


@pytest.mark.parametrize("name", OWN_ANSWERS)
def test_what_learns_from_answers_of_its_own_is_certified_too(
    name: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    use = {**recipe["use"], "reward_length": {"target": 3}}
    stages = [{name: {"learning_rate": 1e-2, **OWN_ANSWERS[name]}}]
    found = certify(from_mapping({**recipe, "use": use, "stages": stages}), tmp_path / "certified", steps=2)
    assert found.ok, found.verdict
    assert {"weights", "optimiser", "random numbers", "metrics"} <= {part.what for part in found.parts if part.compared}


def test_of_a_stage_that_saves_too_seldom_it_says_so() -> None:
    assert "a stage has no checkpoint within 4 steps; ask for more" in _meant(kill=True, code=0, steps=2)


def test_the_report_says_what_was_compared(certificate: Certificate) -> None:
    assert certificate.ok
    assert certificate.verdict.startswith("killed and resumed in each stage, it reaches the same bits")
    assert Certificate.load(certificate.folder) == certificate
    written = json.loads((certificate.folder / "certificate.json").read_text())
    assert (written["ok"], written["steps"], len(written["parts"])) == (True, 1, 8 * len(stages()))
    assert "the same" in certificate._repr_html_()


@pytest.fixture
def tampered(certificate: Certificate, tmp_path: Path) -> Path:
    """A copy of the resumed run, for one thing of it to be changed."""
    return Path(shutil.copytree(certificate.folder / "resumed", tmp_path / "tampered"))


def differing(certificate: Certificate, other: Path) -> list[tuple[str, str]]:
    parts = compare_runs(certificate.folder / "whole", other)
    return [(part.what, part.difference) for part in parts if part.difference]


def test_one_flipped_bit_of_a_weight_is_found(certificate: Certificate, tampered: Path) -> None:
    path = next(tampered.glob("stage-1-*/adapter/adapter_model.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})
    (found,) = differing(certificate, tampered)
    assert found[0] == "weights"
    assert f"adapter_model.safetensors.{name}: 1 of" in found[1]


def test_another_moment_of_the_optimiser_is_found(certificate: Certificate, tampered: Path) -> None:
    path = next(tampered.glob("stage-1-*/checkpoints/step-2/optimizer.pt"))
    state = torch.load(path, weights_only=True)
    state["state"][0]["exp_avg"][0, 0] += 1e-12
    torch.save(state, path)
    (found,) = differing(certificate, tampered)
    assert found[0] == "optimiser"
    assert "step-2/optimizer.pt.state.0.exp_avg: 1 of" in found[1]


def test_a_metric_another_order_and_a_missing_file_are_found(certificate: Certificate, tampered: Path) -> None:
    lines = [json.loads(line) for line in (tampered / "metrics.jsonl").read_text().splitlines()]
    changed = next(line for line in lines if line["kind"] == "step" and line["step"] == 2)
    changed["loss"] += 1e-9
    lines[0]["tokens_per_second"] = 1.0
    (tampered / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = json.loads((tampered / "run.json").read_text())
    state["stages"][0]["facts"]["data_order"] = "another"
    (tampered / "run.json").write_text(json.dumps(state))
    next(tampered.glob("stage-1-*/checkpoints/step-1/rng_state.pth")).unlink()
    found = differing(certificate, tampered)
    assert [what for what, _ in found] == ["data order", "metrics", "random numbers", "results"]
    assert found[1][1].startswith("step 2, step: loss: ")
    assert found[2][1].endswith("rng_state.pth: only in the uninterrupted run")


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ({"a": [1.0, float("nan")]}, {"a": [1.0, float("nan")]}, None),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a[1]: 2 and 3"),
        ({"a": 1}, {"a": 1.0}, "a: 1 and 1.0"),
        ({"eval_runtime": 1.0, "tokens_per_second": 2}, {"eval_runtime": 3.0}, None),
        ({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}, "a: 0 of 1 numbers, by 0 at most"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, "a: torch.float32 [2] and torch.float32 [3]"),
        ({"a": 1}, {}, "a: only in the uninterrupted run"),
        ({}, {"a": 1}, "a: only in the resumed one"),
    ],
)
def test_values_are_compared_bit_by_bit_but_for_time(left: Any, right: Any, found: str | None) -> None:
    assert difference(left, right) == found


FORGETFUL = '''
from dataclasses import dataclass
from typing import ClassVar
from tunekit_sft import Sft
from tunekit_train import Objective
from tunekit_train.testing import CrossEntropy
from tunekit_train.objective import Sums

class Counting(CrossEntropy):
    """Keeps a state that it does not save."""
    def __init__(self):
        self.steps = 0
    def sums(self, batch, provided):
        sums = super().sums(batch, provided)
        return Sums(sums.loss * (1 + self.steps), sums.metrics)
    def observe(self, metrics):
        self.steps += 1

class Forgetful(Sft):
    """Learns faster from step to step, until it is interrupted."""
    def objective(self):
        return Counting()
'''


def test_a_stage_that_forgets_its_state_gets_no_certificate(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the program, whose exit code is 1, and which says what differed first."""
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    (tmp_path / "data.json").write_text(json.dumps(TALKS))
    mapping = {**recipe, "data": "data.json", "stages": [{"./forgetful.py:Forgetful": {"batch": {"rows": 2}}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mapping))
    monkeypatch.chdir(tmp_path)
    assert program(["certify", "recipe.yaml", "--steps", "1", "use.lora.dropout=0", "--output", "found", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert "parts differ; first metrics of 1" in told["verdict"]
    assert "step 2, step: loss" in told["verdict"]
    assert (tmp_path / "found" / "certificate.json").is_file()


def test_what_cannot_be_certified_is_refused(recipe: dict[str, Any], certificate: Certificate, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is there already; choose another folder for the certificate"):
        certify(from_mapping(recipe), certificate.folder)
    with pytest.raises(PlanError, match="steps: is 0, so there is nothing to resume"):
        tk.Pipeline.from_recipe(from_mapping(recipe)).certify(tmp_path / "x", steps=0)
    bad = {**recipe, "data": {"rows": [{"instruction": "What?", "output": ""}]}, "stages": ["sft"]}
    with pytest.raises(TunekitError, match=r"could not be certified: .*ended with 1; all that was printed is in"):
        certify(from_mapping(bad), tmp_path / "bad")
