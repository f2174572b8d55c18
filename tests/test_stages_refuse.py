"""What somebody new to it may write of a stage and cannot mean is refused when it is planned, in words that help."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.errors import PlanError
from tunekit.testing import save_tiny_model

PAIRS = [{"prompt": "Is it?", "chosen": "yes", "rejected": "no"}]
LABELLED = [{"prompt": "Is it?", "completion": "yes", "label": True}]
TALK = [{"instruction": "Is it?", "output": "yes"}]
TEXTS = [{"text": "it is"}]
CASES: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    ({"dpo": {"beta": 0}}, PAIRS, "stages.0.dpo.beta: is 0: input should be greater than 0"),
    ({"dpo": {"loss": "sigmiod"}}, PAIRS, "did you mean 'sigmoid'?"),
    ({"dpo": {"loss": "hinge", "label_smoothing": 0.1}}, PAIRS, "label_smoothing acts only with loss aot"),
    ({"dpo": {"loss": "ipo", "margin_weight": 2.0}}, PAIRS, "margin_weight acts only with loss discopop"),
    ({"dpo": {"loss": {"sigmoid": -1.0}}}, PAIRS, "name at least one loss, each with a weight above 0"),
    ({"dpo": {"batch": {"too_long": "split"}}}, PAIRS, "dpo.batch.too_long: is split, and answers that are preferred"),
    ({"simpo": {"reference": "auto"}}, PAIRS, "stages.0.simpo.reference: is not an option; the options are"),
    ({"simpo": {"gama": 1.0}}, PAIRS, "did you mean 'gamma'?"),
    ({"orpo": {"label_smoothing": 0.1}}, PAIRS, "stages.0.orpo.label_smoothing: is not an option"),
    ({"cpo": {"label_smoothing": 0.5}}, PAIRS, "stages.0.cpo.label_smoothing: is 0.5: input should be less than 0.5"),
    ({"kto": {"desirable_weight": 0, "undesirable_weight": 0}}, LABELLED, "no answer would have a loss"),
    ({"kto": {"batch": {"too_long": "split"}}}, LABELLED, "kto.batch.too_long: is split"),
    ({"kto": {"loss": "apo_zero"}}, LABELLED, "did you mean 'apo_zero_unpaired'?"),
    ({"reward": {"centring": -1}}, PAIRS, "stages.0.reward.centring: is -1"),
    ({"reward": {"centering": 0.1}}, PAIRS, "did you mean 'centring'?"),
    ({"sft": {"loss": "dft", "label_smoothing": 0.1}}, TALK, "label_smoothing acts only with loss cross_entropy"),
    ({"sft": {"supervise": "assistents"}}, TALK, "did you mean 'assistant'?"),
    ({"pretrain": {"block": 4096}}, TEXTS, "block is 4096, and batch.max_length 1024; raise the latter"),
    ({"pretrain": {"thinking": "drop"}}, TEXTS, "stages.0.pretrain.thinking: is not an option"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.parametrize(("stage", "rows", "said"), CASES, ids=[str(stage) for stage, _, _ in CASES])
def test_a_recipe_that_cannot_be_meant_is_refused_with_what_to_do(
    stage: dict[str, Any], rows: list[dict[str, Any]], said: str, model: str
) -> None:
    with pytest.raises(PlanError) as caught:
        Pipeline(model, rows, {"lora": {"rank": 4}}, [stage]).plan(estimate=False)
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_stage_that_answers_prompts_is_refused_in_several_processes_by_the_plan(
    stage: str, way: str, model: str
) -> None:
    use = {"lora": {"rank": 4}, "reward_length": {"target": 3}, way: {"processes": 2}}
    with pytest.raises(PlanError, match=rf"stages\.0\.{stage}: .* in one process, and the run is carried out by sev"):
        Pipeline(model, TALK, use, [stage]).plan(estimate=False)
