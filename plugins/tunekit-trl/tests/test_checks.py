"""What TRL's trainers cannot do, or would ignore, is refused when the run is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import plan_for
from tunekit.values import Mixing, Sample, StageContext
from tunekit_distributed import Ddp
from tunekit_lora import Lora
from tunekit_trl import Grpo, Rloo


class Nothing(PluginConfig):
    """No options."""


class Brief(Plugin[Nothing]):
    """Rewards short answers."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        return [-float(len(each.answer)) for each in samples]


class Sure(Plugin[Nothing]):
    """Measures batches of tunekit's own engine."""

    @hookimpl
    def tunekit_train_metrics(self, metrics: Any, context: StageContext) -> Any:
        return metrics


def problems(stage: Any, *plugins: Any, **changes: Any) -> list[str]:
    plan = plan_for(stage, *plugins)
    staged = tuple(replace(each, **changes) for each in plan.stages)
    return [str(problem) for problem in stage.tunekit_check(replace(plan, stages=staged), plan.machine)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": {"packing": "greedy"}}, "batch.packing: is 'greedy', which tunekit's own engine does"),
        ({"batch": {"share_prompts": False}}, "batch.share_prompts: is False"),
        ({"batch": {"padding": "never"}}, "batch.padding: is never, and TRL pads"),
        ({"batch": {"too_long": "split"}}, "half a prompt is none; use cut or drop"),
        ({"compute": {"compile": True}}, "compute.compile: is True"),
        ({"early_stopping": {"patience": 2}, "evaluate": {"share": 0.5}}, "early_stopping.patience: is 2"),
        ({"schedule": {"shape": "reduce_lr_on_plateau"}, "evaluate": {"share": 0.5}}, "nothing but the loss to go by"),
        ({"schedule": {"power": 2.0}}, "the schedule linear does not use it"),
        ({"batch": {"rows": 6}}, "num_generations: is 8, and 6 rows x 1 micro-batches are generated at once"),
        ({"evaluate": {"share": 0.5}, "num_generations_eval": 3}, "num_generations_eval: is 3, and evaluations take 8"),
        ({"reward_weights": {"breif": 1.0}}, "names no plugin that values answers; did you mean brief?"),
        ({"loss_type": "sapo", "epsilon": 0.1}, "epsilon: does nothing to the loss sapo"),
        ({"loss_type": "luspo"}, "is token, and luspo is a loss of whole answers; use sequence"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "use token"),
        ({"trl": {"vespo_k_poss": 1.0}}, "no option of the installed TRL's GRPOConfig; did you mean vespo_k_pos?"),
        ({"trl": {"vespo_k_pos": "much"}}, "trl.vespo_k_pos: is 'much': input should be a valid number"),
        ({"trl": {"beta": 1.0}}, "write beta as an option of the stage"),
        ({"trl": {"shuffle_dataset": True}}, "trl.shuffle_dataset: is not passed on; use data.shuffle"),
        ({"trl": {"per_device_train_batch_size": 4}}, "is no option of the installed TRL's GRPOConfig"),
        ({"trl": {"generation_kwargs": {"top_p": 0.1}}}, "goes before what the stage's own options say"),
        ({"trl": {"sync_ref_model": True}}, "beta is 0: there is none"),
        ({"trl": {"sync_ref_model": True}, "beta": 0.1}, "moves a whole model, and an adapter is trained"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any], message: str) -> None:
    (found,) = problems(Grpo(**options), Brief(), *([Lora()] if options.get("beta") else []))
    assert found.startswith("use.grpo.")
    assert message in found


def test_without_a_reward_there_is_nothing_to_learn() -> None:
    (found,) = problems(Rloo())
    assert "learns from rewards, and no plugin of the run values answers; name one under use" in found


def test_streamed_data_an_empty_range_and_metrics_of_batches_are_refused() -> None:
    assert "is streamed" in problems(Grpo(), Brief(), mixing=Mixing(streaming=True))[0]
    assert "is [1.0, 0.0], an empty range" in problems(Rloo(reward_clip_range=(1, 0)), Brief())[0]
    assert "sure measures batches of tunekit's own engine" in problems(Grpo(), Brief(), Sure())[0]


@pytest.mark.parametrize("stage", [Grpo(), Rloo()])
def test_several_processes_are_refused_in_the_plan_that_the_user_sees(stage: Any) -> None:
    (found,) = problems(stage, Brief(), Ddp(processes=2))
    assert f"use.{stage.source[0].split('_')[0]}: is trained by TRL in one process, and the run is carried out" in found


def test_what_is_right_is_planned() -> None:
    fine = {"temperature": 0.9, "trl": {"vespo_k_pos": 3, "generation_kwargs": {"no_repeat_ngram_size": 3}}}
    schedule = {"shape": "warmup_stable_decay", "decay_ratio": 0.5}
    assert not problems(Grpo(**fine, schedule=schedule, seed=3, compute={"deterministic": True}), Brief())
    assert not problems(Rloo(batch={"rows": 1, "accumulation": 2}, steps_per_generation=4), Brief())


def test_what_trains_in_no_module_of_the_adapter_is_refused_where_a_reference_is_wanted() -> None:
    """TRL copies what is named after the adapter, and PEFT names rows otherwise."""
    (found,) = problems(Rloo(beta=0.1), Brief(), Lora(tokens=["a"]))
    assert "rloo.beta: is 0.1, and TRL's copy of the adapter leaves out what lora trains" in found
    assert not problems(Rloo(beta=0), Brief(), Lora(tokens=["a"]))
    assert not problems(Rloo(beta=0.1), Brief(), Lora())
    peft = pytest.importorskip("tunekit_peft").Peft
    assert "leaves out what peft trains" in problems(Rloo(beta=0.1), Brief(), peft(method="vera"))[0]
    assert not problems(Rloo(beta=0.1), Brief(), peft(method="oft"))
