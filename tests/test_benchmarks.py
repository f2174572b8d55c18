"""The page on performance is what the kept results say, and everything in it was measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunekit.plan import make_plan
from tunekit.recipe import from_code
from tunekit.testing import save_tiny_model

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "benchmarks"))
    for path in (DOCS / "benchmarks").glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module("run")


@pytest.fixture
def results() -> dict:
    return json.loads((DOCS / "benchmarks" / "results.json").read_text())


def test_the_page_on_performance_is_what_the_kept_results_say(benchmark, results):
    assert (DOCS / "performance.md").read_text() == benchmark.page(results)


def test_every_measured_section_of_the_page_has_its_picture(benchmark, results):
    for name in benchmark.SECTIONS.keys() & results.keys():
        assert (DOCS / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


@pytest.mark.parametrize("name", ["techniques", "optimizers"])
def test_a_page_of_its_own_is_what_its_kept_results_say(name, benchmark, results):
    if name not in results:
        pytest.skip(f"{name} has not been measured")
    assert (DOCS / f"{name}.md").read_text() == benchmark.PAGES[name].page(results[name])
    assert (DOCS / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["techniques", "optimizers"])
def test_each_row_of_these_pages_plans_on_what_is_installed(name, benchmark, tmp_path):
    trials = importlib.import_module(f"{name}_contenders").TRIALS
    offered = importlib.import_module("trials").offered(trials)
    assert set(trials) - set(offered) <= {"gptq"}, "all plugins are installed here, and all libraries that are wheels"
    model = save_tiny_model(tmp_path / "tiny")
    for trial in map(trials.get, offered):
        stage = {"sft": {"steps": 1, "learning_rate": trial.rate}}
        make_plan(
            from_code(
                str(model),
                [{"instruction": "a", "output": "b"}],
                {"precision": {"compute": "bf16"}, **trial.use},
                [stage],
            )
        )


def test_a_technique_is_told_with_what_it_took_and_what_came_of_it(benchmark, tmp_path, monkeypatch):
    techniques = benchmark.PAGES["techniques"]
    told = {**run_of(1.0, 2.0, 3 * 2**29), "trainable": 4_900_000, "perplexity": 6.25, "before": 7.5}
    results = {"runs": {"lora": told, "dora": {**told, "before": None}}, "steps": 3, "machine": "m", "versions": "v"}
    page = techniques.page(results)
    assert "| nothing yet | | | | | | 7.500 |" in page
    assert "| LoRA | 4.9 M | 0.0005 | 1.50 GiB | 100 | 62 s | 6.250 |" in page
    monkeypatch.setattr(techniques, "PICTURES", tmp_path)
    techniques.draw(results)
    assert (tmp_path / "techniques.png").exists()
    other = {**told, "steps": told["steps"][:2]}
    with pytest.raises(AssertionError, match="same tokens"):
        techniques.page({**results, "runs": {"lora": told, "dora": other}})


def test_states_of_an_optimiser_are_counted_once_where_they_are_shared(benchmark):
    import torch

    weights = [torch.nn.Parameter(torch.ones(4, 8)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights)
    table = torch.zeros(16)
    for weight in weights:
        optimizer.state[weight] = {"mean": torch.zeros(4, 8), "table": table, "step": 3}
    assert importlib.import_module("states").state_bytes(optimizer) == 4 * (2 * 32 + 16)


def run_of(seconds: float, loss: float, peak: int) -> dict:
    step = {"loss": loss, "tokens": 100, "seconds": seconds}
    return {"steps": [{**step, "seconds": 60.0}, step, step], "seconds": 60 + 2 * seconds, "peak_bytes": peak}


def test_a_contest_compares_speed_without_the_first_step_memory_and_losses(benchmark):
    ours, theirs = run_of(1.0, 2.0, 2**30), run_of(2.5, 2.25, 2**31)
    page = benchmark.SECTIONS["dpo"].page({"runs": {"fp32": {"tunekit": [ours], "trl": [theirs]}}, "steps": 3})
    assert "| fp32 | tunekit | 100 |  |  | 1.00 GiB |  |  |" in page
    assert "| fp32 | TRL DPOTrainer | 40 | 2.50x | 2.5x | 2.00 GiB | 50% | 2.5e-01 |" in page


def test_freeze_tuning_is_compared_over_the_whole_run(benchmark):
    ours, theirs = run_of(1.0, 2.0, 2**30), run_of(32.0, 2.0, 2**30)
    page = benchmark.SECTIONS["freeze"].page({"runs": {"bf16": {"tunekit": [ours], "plain": [theirs]}}, "steps": 1})
    assert "| bf16 | transformers.Trainer | 124 s | 2.00x | 2.5x |" in page


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_what_our_contender_is_told_plans(stage, benchmark, tmp_path):
    work = importlib.import_module("contenders").Work("", "fp32", "", 2, tmp_path, stage, 2)
    rows = {
        "sft": {"instruction": "a", "output": "b"},
        "dpo": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "kto": {"prompt": "a", "completion": "b", "label": True},
    }
    model = save_tiny_model(tmp_path / "tiny")
    use = {"lora": {}, "precision": work.precision}
    plan = make_plan(from_code(str(model), [rows[stage]], use, [{stage: work.options()}]))
    assert plan.stages[0].plugin.plugin.config.batch.rows == 2
