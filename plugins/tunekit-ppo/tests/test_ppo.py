"""PPO as a whole: rollouts against plain transformers, the ratio of 1, borders, learning, unseen prompts, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.errors import PlanError, TunekitError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import plan_for, stage_context, tiny_bundle
from tunekit.values import Mixing, ModelBundle, Sample, StageContext
from tunekit_lora import Lora
from tunekit_ppo import KlConfig, Ppo
from tunekit_ppo.control import Control
from tunekit_ppo.gathering import Rollout
from tunekit_ppo.rollouts import Rollouts
from tunekit_train import AdamW

Run = Callable[..., Any]


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollouts that are made from now on."""
    made: list[Rollout] = []
    plain = Rollouts._items

    def keep(self: Rollouts, rollout: Rollout) -> Any:
        made.append(rollout)
        return plain(self, rollout)

    monkeypatch.setattr(Rollouts, "_items", keep)
    return made


def trained_lora(dropout: float = 0.0) -> ModelBundle:
    """The tiny model with an adapter that says something already."""
    context = stage_context(Lora(rank=4, dropout=dropout), AdamW(), folder=Path())
    bundle = context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
    torch.manual_seed(2)
    for name, each in bundle.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.05)
    return bundle


def of_copy(model: Any, ids: list[int], answer: int, temperature: float) -> torch.Tensor:
    """Transformers alone: log-probabilities of the last `answer` tokens, one sequence in a batch of its own."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].float() / temperature
    found = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return found[-answer:]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_knows_what_policy_and_reference_say_of_its_answers(
    temperature: float, run_ppo: Run, rollouts: list[Rollout]
) -> None:
    bundle = trained_lora(dropout=0.3)
    start = copy.deepcopy(bundle.model)
    ran = run_ppo({"epochs": 2, "rollout": {"temperature": temperature}, "learning_rate": 5e-3}, bundle=bundle)
    assert ran.result.facts["reference"] == "copied"
    assert ran.result.facts["dropout_off"] > 0
    for number, rollout in enumerate(rollouts):
        for each in rollout.scored:
            (sequence,) = each.item.sequences
            expected = of_copy(start, [int(token) for token in sequence.ids], len(each.reference), temperature)
            torch.testing.assert_close(torch.from_numpy(each.reference), expected, rtol=0, atol=1e-4)
            if number == 0:
                torch.testing.assert_close(torch.from_numpy(each.log_probs), expected, rtol=0, atol=1e-4)
    assert rollouts[0].figures()["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rollouts[1].figures()["kl"]) > 1e-3, "the policy has moved away meanwhile"


def test_the_ratio_of_the_first_minibatch_is_1(run_ppo: Run) -> None:
    ran = run_ppo({"epochs": 3, "batch": {"rows": 2, "accumulation": 2}}, bundle=trained_lora(dropout=0.3))
    ratios, shifts = ran.steps("ratio"), ran.steps("policy_shift")
    assert len(ratios) == 3 * 4
    for first in range(0, len(ratios), 4):
        assert ratios[first] == pytest.approx(1, abs=1e-4)
        assert shifts[first] < 1e-9, "each ratio is 1, and not their mean alone"
    assert max(shifts) > 1e-6, "the policy moves from then on"


def test_every_answer_is_learnt_from_once_in_each_pass(run_ppo: Run, rollouts: list[Rollout]) -> None:
    ran = run_ppo({"epochs": 1})
    (rollout,) = rollouts
    tokens = sum(len(each.log_probs) for each in rollout.scored)
    assert sum(ran.steps("supervised_tokens")) == 2 * tokens
    assert ran.steps("answer_tokens") == [tokens / 8] * 4


def test_checkpoints_fall_on_the_first_border_that_is_due_or_later(run_ppo: Run) -> None:
    ran = run_ppo({"epochs": 4, "checkpoint": {"every": 3}})
    assert [event.step for event in ran.events if event.kind == "saved"] == [4, 8, 12]


def test_what_is_rewarded_becomes_more_frequent(run_ppo: Run) -> None:
    """All weights train: an adapter cannot turn the random head of a tiny model."""
    options = {"epochs": 170, "learning_rate": 2e-3, "reference": "copied", "kl": {"coefficient": 0.002}}
    rollout = {"prompts": 64, "epochs": 2, "batch": 64, "max_new_tokens": 2}
    ran = run_ppo({**options, "rollout": rollout, "batch": {"rows": 32}, "evaluate": {"share": 0.25}}, adapter=False)
    rewards = ran.steps("reward_letters")[::4]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3, rewards
    assert max(ran.steps("kl")) < 8
    before, after = ran.result.facts["held_out_before"], ran.result.metrics
    assert after["eval_reward"] > before["reward"] + 0.3, "it holds for prompts that were never learnt from"
    assert abs(before["kl"]) < 1e-3
    assert after["eval_kl"] > 0.1
    assert ran.result.facts["items_held_out"] == 2


def test_a_penalty_holds_the_policy_near_the_reference(run_ppo: Run) -> None:
    options = {"epochs": 12, "learning_rate": 1e-2, "rollout": {"max_new_tokens": 6}, "batch": {"rows": 8}}
    loose, tight = (
        run_ppo({**options, "kl": {"coefficient": value}}, str(value)).steps("kl")[-1] for value in (0.0, 1.0)
    )
    assert tight < loose / 2


class FixedConfig(PluginConfig):
    """What is said, whatever is asked."""

    rewards: tuple[float, ...]


class Fixed(Plugin[FixedConfig]):
    """Values the same whatever is asked."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        return list(self.config.rewards)


@pytest.mark.parametrize(
    ("rewards", "message"), [([1.0], "gave 1 rewards for 8 answers"), ([float("nan")] * 8, "at nan")]
)
def test_a_reward_that_is_none_ends_the_stage(rewards: list[float], message: str, run_ppo: Run) -> None:
    with pytest.raises(TunekitError, match=message):
        run_ppo({}, more=(Fixed(rewards=tuple(rewards)),))


def problems(stage: Ppo, *others: Any, streaming: bool = False) -> str:
    plan = plan_for(stage, *others)
    if streaming:
        plan = replace(plan, stages=tuple(replace(each, mixing=Mixing(streaming=True)) for each in plan.stages))
    return "\n".join(str(problem) for problem in stage.tunekit_check(plan, plan.machine))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says what an answer is worth; name a plugin"),
        (
            {"rollout": {"prompts": 10}},
            "rollout.prompts: is 10, which is no multiple of the 4 answers of a step; set it",
        ),
        ({"rollout": {"max_new_tokens": 1024}}, "batch.max_length leaves 1024 tokens for prompt and answer"),
        ({"rollout": {"min_new_tokens": 65}}, "rollout.min_new_tokens: is 65, more than max_new_tokens"),
        ({"batch": {"packing": "greedy"}}, "batch.packing: is greedy, and answers are not there to be packed"),
        ({"batch": {"by_length": True}}, "answers have none before they are given"),
        ({"batch": {"too_long": "split"}}, "part of a prompt cannot be answered"),
        ({"kl": {"target": 4.0}}, "kl.target: is set, and the coefficient is fixed; leave it out, or set kl.control"),
        ({"kl": {"horizon": 99}}, "kl.horizon: is set, and the coefficient is fixed"),
        ({"kl": {"coefficient": 0.0, "estimator": "k2"}}, "kl.estimator: is set, and the penalty weighs nothing"),
        ({"kl": {"coefficient": 0.0, "control": "adaptive"}}, "kl.coefficient: is 0, and adaptive control multiplies"),
        (
            {"kl": {"control": "adaptive", "horizon": 12}},
            "kl.horizon: is 12, and a rollout of 64 answers could correct the coefficient to 0 or below; set it above",
        ),
        ({"reward": {"timeout": 1.0}}, "reward.timeout: is set, and there is no endpoint; leave it out, or set reward"),
        ({"reward": {"retries": 1}}, "reward.retries: is set, and there is no endpoint"),
        ({"reward": {"weight": 2.0}}, "reward.weight: is set, and it weighs the rewards of reward.adapter"),
        ({"value_coefficient": 0.0, "value_clip": 0.1}, "value_clip: is set, and the value loss weighs nothing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: dict[str, Any], message: str) -> None:
    assert message in problems(Ppo(**options), Lora())


def test_streamed_prompts_and_whole_weights_without_a_copy_are_refused() -> None:
    rewarded = {"reward": {"url": "http://127.0.0.1/"}}
    assert "the data is streamed" in problems(Ppo(**rewarded), Lora(), streaming=True)
    assert "a second copy of all weights" in problems(Ppo(**rewarded))
    assert problems(Ppo(**rewarded, reference="copied")) == problems(Ppo(**rewarded), Lora()) == ""


def test_several_processes_are_refused() -> None:
    from tunekit_distributed import Ddp

    found = problems(Ppo(reward={"url": "http://127.0.0.1/"}), Lora(), Ddp(processes=2))
    assert "use.ppo: gathers its answers in one process, and the run is carried out by several" in found


def test_the_smallest_horizon_that_is_planned_never_turns_the_penalty_into_a_bonus() -> None:
    kl = KlConfig(coefficient=0.1, control="adaptive", horizon=13)  # 12.8 is a fifth of the 64 answers of a rollout
    assert "kl" not in problems(Ppo(kl=kl), Lora())
    control = Control.of(kl)
    for _ in range(5):
        control.update_(0.0, 64)
        assert control.coefficient > 0


def test_noise_in_the_embeddings_does_not_go_with_it() -> None:
    from tunekit_neftune import Neftune

    with pytest.raises(PlanError, match="does not work with neftune"):
        plan_for(Ppo(), Lora(), Neftune())
