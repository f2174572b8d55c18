"""Chains of stages on one base: each goes on from the last one's result, named adapters stand beside the policy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError, RunFolderError
from tunekit.recipe import from_mapping
from tunekit.testing import save_tiny_model

TALKS = [
    {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, plainly."} for number in range(6)
]
PAIRS = [
    {"prompt": f"What is {number}?", "chosen": f"It is {number}, said well.", "rejected": "No idea at all."}
    for number in range(6)
]
OPTIONS: dict[str, Any] = {"steps": 2, "learning_rate": 1e-2, "batch": {"rows": 3}, "checkpoint": {"every": 1}}


class ReaderConfig(tk.PluginConfig):
    """Nothing to set."""


class Reader(tk.Plugin[ReaderConfig]):
    """A stage that trains nothing and notes which adapters it is told of, and which model it is given."""

    seen: dict[str, Any]

    @tk.hookimpl
    def tunekit_prepare_data(self, data: Any, tokenizer: Any, context: Any) -> Any:
        from tunekit_train import Rules
        from tunekit_train.preparing import prepare

        return prepare(data, tokenizer, Rules(), frozenset({"conversation"}), context)

    @tk.hookimpl
    def tunekit_train_stage(self, bundle: Any, data: Any, context: Any) -> Any:
        from tunekit.values import StageResult

        named = bundle.model.named_parameters()
        trains = {name.split(".")[-2] for name, each in named if each.requires_grad}
        self.seen = {"adapters": dict(context.adapters), "name": bundle.adapter_name, "trains": trains}
        return StageResult(bundle)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("chains") / "model"))


def reward(name: str = "reward", **options: Any) -> dict[str, Any]:
    return {"reward": {**OPTIONS, "adapter": name, "data": PAIRS, **options}}


def pipeline(model: str, *stages: Any, use: Any = None) -> tk.Pipeline:
    return tk.Pipeline(model, TALKS, {"lora": {"rank": 4}} if use is None else use, stages)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def chained(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[tk.Run, Reader]:
    """[sft, reward beside it, sft again, a reader]: made once."""
    reader, own = Reader(), {"lora": {"rank": 2}, "dora": {}}
    stages = ({"sft": OPTIONS}, reward(use=own), {"sft": OPTIONS}, reader)
    return pipeline(model, *stages).run(tmp_path_factory.mktemp("run") / "chained"), reader


def test_a_named_adapter_is_as_if_it_were_trained_alone(
    chained: tuple[tk.Run, Reader], model: str, tmp_path: Path
) -> None:
    run, _ = chained
    alone = pipeline(model, reward("default"), use={"lora": {"rank": 2}, "dora": {}}).run(tmp_path / "alone")
    assert list(run.adapters) == ["default", "reward"]
    assert weights(run.adapters["reward"]) == weights(alone.adapters["default"])
    assert run.score(["Any text."]) == alone.score(["Any text."]) != [0.0]


def test_the_stages_without_a_name_go_on_from_each_other_as_if_there_were_no_other(
    chained: tuple[tk.Run, Reader], model: str, tmp_path: Path
) -> None:
    run, _ = chained
    alone = pipeline(model, {"sft": OPTIONS}, {"sft": OPTIONS}).run(tmp_path / "alone")
    assert run.adapter == run.adapters["default"] == run.folder / "stage-3-sft" / "adapter"
    assert weights(run.adapters["default"]) == weights(alone.adapters["default"])
    assert not (run.adapters["default"] / "value_head.safetensors").exists()
    assert run.chat("What is two?", max_new_tokens=8) == alone.chat("What is two?", max_new_tokens=8)


def test_a_later_stage_is_told_of_the_adapters_and_trains_the_policy_alone(chained: tuple[tk.Run, Reader]) -> None:
    run, reader = chained
    assert reader.seen == {"adapters": run.adapters, "name": "default", "trains": {"default"}}


@pytest.fixture(scope="module")
def resumed(model: str, tmp_path_factory: pytest.TempPathFactory) -> tk.Run:
    """The same without the reader: stopped in the third stage after its first step, two adapters finished; resumed."""
    folder = tmp_path_factory.mktemp("run") / "resumed"

    def stop(event: tk.Event) -> None:
        if (event.kind, event.stage, event.step) == ("saved", "sft", 1) and (folder / "stage-3-sft").exists():
            raise KeyboardInterrupt

    stages = ({"sft": OPTIONS}, reward(use={"lora": {"rank": 2}, "dora": {}}), {"sft": OPTIONS})
    with pytest.raises(InterruptedRunError):
        pipeline(model, *stages).run(folder, watchers=[stop])
    return tk.resume_run(folder)


def test_an_opened_run_answers_with_the_adapter_that_is_asked_for(resumed: tk.Run) -> None:
    run = resumed
    opened = [tk.open_run(run.folder, adapter) for adapter in (None, "default", "reward")]
    said = [each.chat("What is two?", max_new_tokens=12, temperature=1.0, seed=3) for each in opened]
    assert said[0] == said[1] == run.chat("What is two?", max_new_tokens=12, temperature=1.0, seed=3)
    assert {each.perplexity(["What is two?"]) for each in opened} == {
        opened[0].perplexity(["What is two?"]),
        opened[2].perplexity(["What is two?"]),
    }
    assert opened[0].score(["Any text."]) == opened[2].score(["Any text."]) == run.score(["Any text."])
    assert opened[0].perplexity(["What is two?"]) == run.perplexity(["What is two?"])
    with pytest.raises(RunFolderError, match="holds no adapter named 'critic'; it holds default, reward"):
        tk.open_run(run.folder, "critic")


def test_a_chain_that_is_interrupted_goes_on_with_all_its_adapters(
    chained: tuple[tk.Run, Reader], resumed: tk.Run
) -> None:
    run, _ = chained
    assert [weights(folder) for folder in resumed.adapters.values()] == [
        weights(folder) for folder in run.adapters.values()
    ]
    assert resumed.score(["Any text."]) == run.score(["Any text."])


def test_dpo_prefers_from_where_sft_has_left_the_model(model: str, tmp_path: Path) -> None:
    """Its reference is the policy at the start of the stage, so the first margin is zero."""
    run = pipeline(model, {"sft": OPTIONS}, {"dpo": {**OPTIONS, "data": PAIRS}}).run(tmp_path / "run")
    first = next(line for line in run.metrics if line["stage"] == "dpo" and line["kind"] == "step")
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    facts = run.record.finished_stages()[1]["facts"]
    assert "not fresh" in facts["reference_reason"]


def test_a_recipe_continues_a_saved_adapter(chained: tuple[tk.Run, Reader], model: str, tmp_path: Path) -> None:
    """sft, and in another run sft on top, is what both in one run are."""
    run, _ = chained
    start = str(run.folder / "stage-1-sft" / "adapter")
    continued = pipeline(model, {"sft": {**OPTIONS, "adapter": {"start": start}}}).run(tmp_path / "run")
    assert weights(continued.adapters["default"]) == weights(run.adapters["default"])
    assert f"begins as {start}" in "".join(continued_plan(continued).split("\n"))


def continued_plan(run: tk.Run) -> str:
    from tunekit.display import plan_sections

    return "\n".join(str(row) for section in plan_sections(run.plan) for row in getattr(section, "rows", ()))


@pytest.mark.parametrize(
    ("use", "stages", "message"),
    [
        ({"freeze": {}}, [reward()], "stages.0.reward.adapter: is to train an adapter, one named reward, beside "
         "others, but freeze trains the weights of the base; add `lora: {}` to use"),
        ({}, [{"sft": {}}, reward()], "one named reward, beside others, but no plugin here makes adapters"),
        ({"lora": {}, "pissa": {}, "precision": {"compute": "fp32"}}, [{"sft": {}}, reward()],
         "is reward, but pissa changes the base, on which every adapter stands; take pissa out"),
        ({"lora": {}}, [reward("a b")], "stages.0.reward.adapter.name: is 'a b'"),
        ({"lora": {}}, [{"sft": {"adapter": 3}}], "stages.0.sft.adapter: is 3, no name of an adapter"),
        ({"lora": {}}, [{"sft": {"adapter": {"nam": "x"}}}], "stages.0.sft.adapter.nam: is not an option"),
        ({"lora": {}}, [{"sft": {"adapter": {"start": "tests"}}}], "adapter.start: tests holds no LoRA adapter"),
        ({"lora": {}}, [{"sft": {"adapter": {"start": "nowhere"}}}], "adapter.start: there is no folder nowhere"),
        ({"full": {}}, [{"sft": {"adapter": {"start": "tests"}}}], "adapter.start: full begins with no saved adapter"),
        ({"lora": {}}, [{"sft": {}}, {"sft": {"use": {"lora": {"rank": 2}}}}],
         "stages.1.sft.use.lora: says how to make the adapter 'default', which an earlier stage trains already"),
        ({"lora": {}}, [{"sft": {}}, {"sft": {"adapter": {"start": "nowhere"}}}],
         "stages.1.sft.adapter.start: says where the adapter 'default' starts, which an earlier stage trains already"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_plan_time(
    use: dict[str, Any], stages: list[Any], message: str, model: str
) -> None:
    with pytest.raises((PlanError, tk.RecipeError)) as caught:
        tk.Pipeline(model, TALKS, use, stages).plan(estimate=False)
    assert message in str(caught.value)


def test_a_start_of_another_rank_or_of_other_layers_is_refused(chained: tuple[tk.Run, Reader], model: str) -> None:
    start = {"sft": {"adapter": {"start": str(chained[0].folder / "stage-1-sft" / "adapter")}}}
    with pytest.raises(PlanError, match=r"was trained with rank 4, and use\.lora\.rank is 8"):
        pipeline(model, start, use={"lora": {"rank": 8}}).plan(estimate=False)
    with pytest.raises(PlanError, match=r"is for other layers than use\.lora\.targets: .* is adapted there and not"):
        pipeline(model, start, use={"lora": {"targets": ["q_proj"]}}).plan()
    pipeline(model, start, use={"lora": {"targets": "all-linear"}}).plan()


def test_a_recipe_with_adapters_is_read_back_as_it_was_written() -> None:
    mapping = {
        "model": "m",
        "stages": [
            {"sft": {"adapter": {"start": "there"}}},
            {"reward": {"adapter": "critic"}},
            {"sft": {"adapter": {"name": "b", "start": "there"}}},
            {"sft": {}},
        ],
        "seed": 0,
    }
    recipe = from_mapping(mapping)
    assert recipe.to_mapping() == mapping
    assert json.loads(json.dumps(recipe.to_mapping())) == mapping
