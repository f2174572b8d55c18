"""Every option of the stages acts, as TRL's own does: by the trained weights, against TRL alone with that option."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tunekit.hooks import hookimpl
from tunekit.testing.options import shows
from tunekit_trl import Grpo, Rloo

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # TRL alone says so

BASE = {"learning_rate": 1e-2, "num_generations": 4, "max_completion_length": 4, "num_iterations": 2}
OURS = {"batch": {"rows": 4}, "schedule": {"shape": "constant"}, "steps": 2}
THEIRS = {"per_device_train_batch_size": 4, "lr_scheduler_type": "constant", "max_steps": 2}
SAME, OTHER = 1e-7, 1e-4


@dataclass(frozen=True)
class Case:
    """Options of a stage, those of TRL that say the same (as written, unless told), and what the others are."""

    ours: Mapping[str, Any]
    theirs: Mapping[str, Any] | None = None
    besides: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    prompts: int = 1
    stage: Any = Grpo


UNEVEN = {"eos_token_id": list(range(2, 200))}
"""Answers end where the model says one of these, so that some are short."""
FRESH = {"num_iterations": 1, "batch": {"rows": 4, "accumulation": 2}, "gradient_accumulation_steps": 2}
LOSSES = [
    Case({"loss_type": name}, besides=FRESH, model=UNEVEN, prompts=4)
    for name in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo")
]
TWO_GROUPS = {"per_device_train_batch_size": 8}
EVIDENCE: dict[str, list[Case]] = {
    "learning_rate": [Case({"learning_rate": 3e-3})],
    "batch.rows": [Case({"batch": {"rows": 8}}, TWO_GROUPS, prompts=2)],
    "num_generations": [Case({"num_generations": 2}, prompts=2), Case({"num_generations": 2}, prompts=2, stage=Rloo)],
    "max_completion_length": [Case({"max_completion_length": 6})],
    "temperature": [Case({"temperature": 0.5})],
    "top_p": [Case({"top_p": 0.3})],
    "top_k": [Case({"top_k": 3})],
    "min_p": [Case({"min_p": 0.9})],
    "repetition_penalty": [Case({"repetition_penalty": 0.01})],
    "steps_per_generation": [Case({"steps_per_generation": 2}, prompts=2)],
    "num_iterations": [Case({"num_iterations": 1}, prompts=2)],
    "epsilon": [Case({"epsilon": 0.01})],
    "epsilon_high": [Case({"epsilon_high": 0.01})],
    "mask_truncated_completions": [Case({"mask_truncated_completions": True})],
    "disable_dropout": [Case({"disable_dropout": True}, model={"adapter": True, "dropout": 0.5})],
    "reward_weights": [Case({"reward_weights": {"letters": 9.0}}, {"reward_weights": [9.0, 1.0]})],
    "beta": [
        Case({"beta": 2.0}),
        Case({"beta": 2.0}, besides={"num_iterations": 1}, prompts=2, stage=Rloo),
    ],
    "trl": [Case({"trl": {"vespo_k_pos": 9.0}}, {"vespo_k_pos": 9.0}, besides={"loss_type": "vespo"})],
    "loss_type": [
        *LOSSES,
        Case({"loss_type": "vespo"}),
        Case({"loss_type": "luspo"}, besides={"importance_sampling_level": "sequence"}),
    ],
    "scale_rewards": [
        Case({"scale_rewards": "none"}),
        Case({"scale_rewards": "batch"}, besides={"batch": {"rows": 8}, **TWO_GROUPS}, prompts=2),
    ],
    "importance_sampling_level": [Case({"importance_sampling_level": "sequence"}, besides={"loss_type": "grpo"})],
    "delta": [Case({"delta": 1.01})],
    "entropy_coef": [Case({"entropy_coef": 1.0})],
    "top_entropy_quantile": [Case({"top_entropy_quantile": 0.3})],
    "multi_objective_aggregation": [Case({"multi_objective_aggregation": "normalize_then_sum"})],
    "normalize_advantages": [Case({"normalize_advantages": True}, stage=Rloo)],
    "reward_clip_range": [Case({"reward_clip_range": (-0.1, 0.1)}, stage=Rloo)],
}
"""The options that the stages bring. What both share is passed on by the same lines, and shown once."""
ENGINE: dict[str, list[Case]] = {
    "weight_decay": [Case({"weight_decay": 0.5}, model={"adapter": True})],
    "max_grad_norm": [Case({"max_grad_norm": 1e-7})],
    "schedule": [Case({"schedule": {"shape": "linear"}}, {"lr_scheduler_type": "linear"})],
    "batch.accumulation": [
        Case({"batch": {"rows": 4, "accumulation": 2}}, {"gradient_accumulation_steps": 2}, prompts=2)
    ],
}
"""Options of every stage that are passed on."""


KEPT: dict[str, Any] = {}
"""Weights that several cases compare theirs with."""


def _without(world: Any, stage: Any, besides: Mapping[str, Any]) -> Any:
    key = repr((stage, world.model, world.lora, world.adapter, besides))
    if key not in KEPT:
        KEPT[key] = world.tune(stage(**{**OURS, **BASE, **besides}), "without").weights
    return KEPT[key]


@pytest.fixture
def compare(setting: Any, distance: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """Train with the options, without them, and with TRL alone. Nobody looks at the pictures."""
    monkeypatch.setattr("tunekit_trl.results.draw_loss", lambda train, held_out, path, label: path)

    def check(case: Case) -> None:
        world, stage = setting(**case.model), case.stage
        besides = {name: value for name, value in case.besides.items() if name in stage.config_type().model_fields}
        plain = {name: value for name, value in case.besides.items() if name != "batch"}
        tuned = world.tune(stage(**{**OURS, **BASE, **besides, **case.ours}), "tuned").weights
        without = _without(world, stage, besides)
        theirs = {**THEIRS, **BASE, **plain, **(case.ours if case.theirs is None else case.theirs)}
        alone = world.alone(range(case.prompts), rloo=stage is Rloo, **theirs)
        assert distance(tuned, alone) < SAME, "TRL alone reaches other weights"
        assert distance(tuned, without) > OTHER, "the option changes nothing"

    return check


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{option}-{number}")
        for option, cases in {**EVIDENCE, **ENGINE}.items()
        for number, case in enumerate(cases)
    ],
)
def test_an_option_acts_as_that_of_trl(case: Case, compare: Any) -> None:
    compare(case)


class Counting:
    """A reward that counts the answers it is asked about."""

    def __init__(self, letters: Any) -> None:
        self.asked: list[int] = []
        asked = self.asked

        class Counted(type(letters)):  # type: ignore[misc]
            @hookimpl
            def tunekit_reward(self, samples: Sequence[Any], context: Any) -> list[float]:
                asked.append(len(samples))
                return list(super().tunekit_reward(samples, context))

        self.plugin = Counted()


@shows("num_generations_eval")
def test_evaluations_ask_so_many_answers_of_each_prompt(setting: Any) -> None:
    found = {}
    for each in (None, 1):
        world = setting()
        counting = Counting(world.rewards[0])
        world.rewards = (counting.plugin,)
        stage = Grpo(**OURS, **BASE, evaluate={"share": 0.5}, num_generations_eval=each)
        done = world.tune(stage, f"{each}")
        assert len(done.told("eval_reward", "evaluated")) == 1
        found[each] = sum(counting.asked[2:])  # none, and those of the first generation
    assert found == {None: 16, 1: 4}


@shows("batch.max_length")
def test_longer_prompts_are_dropped_or_cut(setting: Any) -> None:
    sizes = {}
    for limit in (20, 1024):
        world = setting()
        stage = Grpo(**{**OURS, **BASE, "batch": {"rows": 4, "max_length": limit, "too_long": "drop"}})
        sizes[limit] = world.tune(stage, f"{limit}").result.facts["prompts_trained_on"]
    assert 0 < sizes[20] < sizes[1024] == 8
