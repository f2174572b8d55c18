"""Runs from a recipe: started in two processes, or joined under torchrun, or refused with a reason."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tunekit import Pipeline, errors
from tunekit.record import Record, read_lines
from tunekit.testing import fake_machine, plan_for, save_tiny_model
from tunekit.values import Accelerator, Precision
from tunekit_distributed import Ddp, Fsdp, Zero
from tunekit_galore import Galore
from tunekit_lora import Lora
from tunekit_sft import Sft

ROWS = [{"instruction": f"say {number}", "input": "", "output": f"{number} it is"} for number in range(8)]
BATCH = {"rows": 2, "accumulation": 2}


def pipeline(folder, *use, stages=None, data=ROWS):
    model = folder / "tiny"
    if not model.exists():
        save_tiny_model(model)
    return Pipeline(str(model), data, [Lora(rank=4), *use], stages or [Sft(batch=BATCH, steps=2)])


def losses(run):
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


def test_a_recipe_with_ddp_does_in_two_processes_what_it_does_in_one(tmp_path):
    heard = []
    one = pipeline(tmp_path).run(tmp_path / "one")
    twice = [Sft(batch=BATCH, steps=2), Sft(batch=BATCH, steps=2)]
    two = pipeline(tmp_path, Ddp(processes=2), stages=twice).run(tmp_path / "two", watchers=[heard.append])
    assert losses(two)[:2] == pytest.approx(losses(one), abs=1e-5)
    assert [event.kind for event in heard] == ["started", "step", "step", "finished"] * 2
    assert two.record.state["status"] == "finished"
    assert two.record.state["memory"]["ratio"] > 0
    assert [stage["facts"]["parallel"] for stage in two.record.finished_stages()] == ["ddp", "ddp"]
    hooks = [call["hook"] for call in read_lines(two.folder / "calls.jsonl")]
    assert hooks.count("tunekit_prepare_data") == 2
    assert "bundle" not in vars(two)
    assert isinstance(two.chat("say 3", max_new_tokens=2), str)


def test_a_recipe_with_fsdp_saves_an_adapter_that_one_process_reads(tmp_path):
    run = pipeline(tmp_path, Fsdp(processes=2)).run(tmp_path / "run")
    assert run.record.finished_stages()[0]["facts"]["parallel"] == "fsdp2"
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert weights
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert isinstance(run.chat("say 3", max_new_tokens=2), str)


def test_an_optimiser_that_looks_at_whole_matrices_is_refused_on_parts_of_them():
    (problem,) = problems_of(Fsdp(processes=2), 0, Galore(rank=4))
    assert "galore is not known to treat each number by itself" in problem.message
    assert not problems_of(Ddp(processes=2), 0, Galore(rank=4))


def test_an_error_in_one_process_is_the_error_of_the_run(tmp_path):
    (tmp_path / "broken.py").write_text(
        "import os\n"
        "from tunekit import Plugin, PluginConfig, hookimpl\n"
        "from tunekit.errors import DivergedError\n"
        "from tunekit.values import ModelBundle, Report\n"
        "class Nothing(PluginConfig):\n    pass\n"
        "class Broken(Plugin[Nothing]):\n"
        '    """Fails in the second process."""\n'
        "    @hookimpl\n"
        "    def tunekit_patch(self, bundle: ModelBundle) -> Report:\n"
        "        if os.environ.get('RANK') == '1':\n"
        "            raise DivergedError('only here')\n"
        "        return Report('fine')\n"
    )
    with pytest.raises(errors.DivergedError, match=r"^only here$"):
        pipeline(tmp_path, Ddp(processes=2), f"{tmp_path}/broken.py:Broken").run(tmp_path / "run")
    state = Record.open(tmp_path / "run").state
    assert (state["status"], state["message"]) == ("failed", "DivergedError: only here")


def test_a_crowd_without_a_plugin_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(errors.PlanError, match=r"this is one of 2 .*each would train alone"):
        pipeline(tmp_path).run(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "accelerators", "reason"),
    [
        ({"processes": "auto"}, 0, "processes: is auto, and there is no accelerator"),
        ({"processes": 3}, 0, "accumulation: is 2, and 3 processes .*such as 3"),
        ({"processes": 4}, 2, "processes: is 4, and there are fewer accelerators"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_the_plan(options, accelerators, reason):
    problems = problems_of(Ddp(**options), accelerators)
    with pytest.raises(errors.PlanError, match=reason):
        raise errors.PlanError(problems)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compute": {"chunked_head": "always"}}, "compute.chunked_head: does not hold under {}: each run of the head"),
        ({"compute": {"compile": True}}, "compute.compile: does not hold under {}: weights are gathered in calls"),
        ({"checkpoint": {"best": True}, "evaluate": {"share": 0.1}}, "best: does not hold under {}: weights are in"),
    ],
)
def test_what_is_insisted_on_and_does_not_hold_is_refused_in_the_plan(options, told):
    for way, plugin in (("fsdp2", Fsdp(processes=2)), ("zero3", Zero(processes=2))):
        (problem,) = problems_of(plugin, 0, **options)
        assert told.format(way) in str(problem)
        assert "or use `ddp`" in str(problem)
    assert not problems_of(Ddp(processes=2), 0, **options)
    assert not problems_of(Zero(processes=2, stage=2), 0, **options)


def test_several_accelerators_are_counted_and_torchrun_knows_better(monkeypatch):
    assert not list(problems_of(Ddp(), 2))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not list(problems_of(Ddp(), 0))
    (problem,) = problems_of(Ddp(processes=4), 0)
    assert "is 4, but this is one of 2 processes" in problem.message


def problems_of(plugin, accelerators, *others, **stage):
    cards = [Accelerator("cuda", "nvidia", "card", 1 << 34)] * accelerators
    device = "cuda" if accelerators else "cpu"
    precision = Precision(device, "float32", "float32", "float32", "tests")
    sft = Sft(batch=BATCH, **stage)
    plan = plan_for(plugin, sft, *others, machine=fake_machine(*cards), precision=precision)
    return list(plugin.tunekit_check(plan, plan.machine))
