"""A stage leaves the model as any stage does, goes on where it stopped, and is one of a chain in a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tunekit as tk
from tunekit.errors import DataError, InterruptedRunError, TunekitError
from tunekit.hooks import hookimpl
from tunekit.testing import conversations, save_tiny_model, tiny_model
from tunekit_lora import Lora
from tunekit_lora.wrapping import peft_reading_old_names
from tunekit_trl import Grpo, Rloo

QUICK: dict[str, Any] = {
    "learning_rate": 1e-2, "batch": {"rows": 4}, "num_generations": 4, "max_completion_length": 4,
    "schedule": {"shape": "constant"},
}  # fmt: skip
REWARD = '''
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from pydantic import Field


class MineConfig(PluginConfig):
    """Options."""

    per: float = Field(default=1.0, description="reward of a letter of the row's `wanted`")


class Mine(Plugin[MineConfig]):
    """Rewards letters that the row wants."""

    @hookimpl
    def tunekit_reward(self, samples, context):
        return [self.config.per * sum(map(each.answer.count, each.columns["wanted"])) for each in samples]
'''


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("adapter", [False, True])
def test_what_trl_changes_in_a_model_is_taken_back(setting: Any, adapter: bool, beta: float) -> None:
    world = setting(adapter=adapter)
    done = world.tune(Grpo(steps=1, beta=beta, **QUICK))
    model, told = done.result.bundle.model, done.result.facts["reference"]
    inner = model.get_base_model() if adapter else model
    assert "forward" not in vars(model)
    assert "forward" not in vars(inner)
    assert not model.training
    if adapter:
        assert list(model.peft_config) == ["default"]
        assert not any(".ref." in name for name in model.state_dict())
    assert inner.config.name_or_path == ""
    left = {path.name for path in (world.folder / "stage").iterdir()}
    assert left - {"checkpoints"} == {"adapter" if adapter else "model", "reward.png"}
    assert told == ("none: beta is 0" if not beta else f"a copy of the {'adapter' if adapter else 'model'}")
    tokens = done.result.bundle.tokenizer("What is two and three?", return_tensors="pt")
    assert model(**tokens, labels=tokens["input_ids"]).logits.shape[1] == tokens["input_ids"].shape[1]


@pytest.mark.parametrize("stage", [Grpo, Rloo])
def test_it_stops_and_goes_on_where_answers_are_used_up(setting: Any, distance: Any, stage: Any) -> None:
    world = setting(adapter=stage is Grpo)
    options = {**QUICK, "steps": 6, "num_iterations": 2, "beta": 0.1, "checkpoint": {"every": 1}}
    whole = world.tune(stage(**options), "whole")
    assert [event.step for event in whole.events if event.kind == "saved"] == [2, 4]

    def stop(event: Any) -> None:
        if (event.kind, event.step) == ("step", 3):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="stage was interrupted; step 2 is saved"):
        world.tune(stage(**options), "stopped", watch=stop)
    resumed = world.tune(stage(**options), "stopped", resume=True)
    assert resumed.told("loss") == whole.told("loss")[2:]
    assert resumed.told("kl") == whole.told("kl")[-len(resumed.told("kl")) :]
    assert distance(resumed.weights, whole.weights) == 0
    world.data = conversations(5)
    with pytest.raises(DataError, match="is not what step 4 was trained on"):
        world.tune(stage(**options), "stopped", resume=True)


def test_a_reward_that_is_no_number_ends_the_stage_and_says_whose(setting: Any) -> None:
    world = setting()
    for value, expected in (([float("nan")] * 4, "values an answer to a test, row 1 by nan"), ([1.0], "by 1 rewards")):

        class Wrong(type(world.rewards[0])):  # type: ignore[misc]
            @hookimpl
            def tunekit_reward(self, samples: Any, context: Any, value: Any = value) -> Any:
                return value if samples else []

        world.rewards = (Wrong(),)
        with pytest.raises(TunekitError, match=expected):
            world.tune(Grpo(steps=1, **QUICK), expected[-5:])


def test_a_reference_of_what_lies_outside_the_adapter_is_refused(setting: Any) -> None:
    world = setting(adapter=True)
    world.lora = Lora(rank=4)
    bundle = world.bundle

    def with_norm(context: Any) -> Any:
        made = bundle(context)
        made.model.get_base_model().model.norm.weight.requires_grad_(True)
        return made

    world.bundle = with_norm
    with pytest.raises(TunekitError, match=r"norm\.weight lies outside the adapter; set beta to 0"):
        world.tune(Grpo(steps=1, beta=0.1, **QUICK))


def test_a_recipe_with_a_reward_of_its_own_learns_after_sft(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"prompt": f"Say {letter}!", "wanted": "abcdefghijklmnopqrstuvwxyz"} for letter in "abcdefgh"]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    pairs = [{"instruction": f"Say {letter}!", "output": f"{letter} it is."} for letter in "abcdefgh"]
    (tmp_path / "answers.json").write_text(json.dumps(pairs))
    reinforce = {**QUICK, "data": str(tmp_path / "prompts.json"), "epochs": 2, "batch": {"rows": 16},
                 "num_generations": 16, "learning_rate": 2e-2, "max_completion_length": 6}  # fmt: skip
    run = tk.Pipeline(
        model=str(tmp_path / "model"),
        data=str(tmp_path / "answers.json"),
        use={f"{tmp_path}/my_reward.py:Mine": {"per": 2.0}},
        stages=[{"sft": {"epochs": 1, "learning_rate": 1e-3}}, {"grpo": reinforce}],
    ).run(tmp_path / "run")
    last = run.record.finished_stages()[-1]
    assert last["facts"]["trainer"].startswith("TRL")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["rewards/mine/mean"] for line in lines if "rewards/mine/mean" in line]
    assert len(rewards) == 16
    assert sum(rewards[-4:]) > 1.25 * sum(rewards[:4]), rewards
    assert isinstance(run.chat("Say a!"), str)


@pytest.mark.parametrize("stage", [Grpo])
def test_bf16_products_train_fp32_adapters(setting: Any, stage: Any) -> None:
    from tunekit.testing import MIXED

    world = setting(adapter=True)
    world.precision = MIXED
    done = world.tune(stage(steps=2, **QUICK))
    assert {value.dtype for value in done.weights.values()} == {torch.float32}
    assert "_original_forward" not in vars(done.result.bundle.model)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from tunekit.errors import PlanError
    from tunekit_trl.session import Session

    context: Any = SimpleNamespace(key="stages.0.grpo")
    session = Session(Grpo().config, None, None, context)  # type: ignore[arg-type]
    session.__dict__["parallel"] = SimpleNamespace(count=2)
    with pytest.raises(PlanError, match=r"stages\.0\.grpo: is trained by TRL in one process, and 2 were asked for"):
        session.refuse()


def test_a_head_of_which_rows_train_shows_its_bias_to_trl() -> None:
    """PEFT's wrapper shows the weight with those rows in it, and no bias."""
    from tunekit_trl.surroundings import head_with_bias

    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5]})
    with peft_reading_old_names():
        model = peft.get_peft_model(tiny_model(), settings)
    head = model.get_output_embeddings()
    for _ in range(2):
        with pytest.raises(AttributeError, match="bias"):
            assert head.bias
        with head_with_bias(model):
            assert head.bias is None
            assert head.weight.requires_grad
