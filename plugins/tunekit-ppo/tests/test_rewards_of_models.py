"""Trained rewards: an adapter on the policy's own base, a full reward model, a classifier, against what they say."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import preferences, save_tiny_model, stage_context, tiny_bundle, tiny_tokenizer
from tunekit.testing.options import shows
from tunekit.testing.tiny import tiny_config
from tunekit.values import Examples, ModelBundle, Sample
from tunekit_lora import Lora
from tunekit_ppo import Ppo
from tunekit_ppo.models import run_head
from tunekit_reward import Reward
from tunekit_reward.scoring import score
from tunekit_train import AdamW

Run = Callable[..., Any]


def reward_stage(folder: Path, adapter: bool) -> tuple[Path, ModelBundle]:
    """Train a reward on the tiny model, and return where it lies and the model that has it."""
    plugins = (Reward(steps=4, learning_rate=5e-3), AdamW(), *([Lora(rank=3, targets=["q_proj", "up_proj"])] if adapter
               else []))  # fmt: skip
    context, bundle = stage_context(*plugins, folder=folder, name="reward"), tiny_bundle()
    if adapter:
        bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
    data = context.calls.own("tunekit_prepare_data", data=preferences(), tokenizer=bundle.tokenizer, context=context)
    result = context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
    (left,) = (each.path for each in result.artefacts if each.kind in {"adapter", "model"})
    return left, result.bundle


def values_of(bundle: ModelBundle, samples: Sequence[Sample]) -> list[float]:
    return score(bundle, [sample.conversation for sample in samples], Reward().rules())


@shows("reward.adapter", "reward.model")
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "model"])
def test_a_trained_reward_says_what_it_says_alone(adapter: bool, run_ppo: Run, tmp_path: Path) -> None:
    folder, alone = reward_stage(tmp_path / "reward", adapter)
    option = {"adapter": "scorer"} if adapter else {"model": str(folder)}
    ran = run_ppo({"reward": option, "epochs": 2}, adapters={"scorer": folder})
    metric, asked = ran.steps("reward_adapter" if adapter else "reward_model"), ran.letters.asked
    for rollout in range(2):
        expected = values_of(alone, asked[8 * rollout : 8 * rollout + 8])
        assert metric[4 * rollout] == pytest.approx(sum(expected) / 8, rel=1e-3, abs=1e-5)
    names = [name for name, each in ran.result.bundle.model.named_parameters() if each.requires_grad]
    assert all(".default." in name for name in names), "what trains has changed"
    assert not any("tunekit_reward" in name for name, _ in ran.result.bundle.model.named_parameters())


@pytest.mark.parametrize("padding", ["<|endoftext|>", "<|im_end|>"])
def test_a_classifier_with_one_label_is_a_reward_model(run_ppo: Run, tmp_path: Path, padding: str) -> None:
    """It values the last token that is not the padding of its config, whatever its tokenizer pads with."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(5)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    model.save_pretrained(str(tmp_path / "classifier"))
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(str(tmp_path / "classifier"))
    ran = run_ppo({"reward": {"model": str(tmp_path / "classifier")}, "steps": 1})
    found = []
    for sample in ran.letters.asked:
        turns = [{"role": turn.role, "content": turn.content} for turn in sample.conversation]
        ids = tiny_tokenizer().apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    assert ran.steps("reward_model")[0] == pytest.approx(sum(found) / 8, rel=1e-3, abs=1e-5)


def test_a_model_without_the_head_that_values_is_refused(run_ppo: Run, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "headless", num_labels=1)
    with pytest.raises(TunekitError, match=r"lack score\.weight, which would be random; name a trained reward model"):
        run_ppo({"reward": {"model": str(tmp_path / "headless")}, "steps": 1})


def test_a_reward_adapter_that_cannot_serve_is_refused(run_ppo: Run, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"stages.0.ppo.reward.adapter: 'nobody' is neither an adapter that an earlier"):
        run_ppo({"reward": {"adapter": "nobody"}})
    folder, _ = reward_stage(tmp_path / "reward", adapter=True)
    with pytest.raises(PlanError, match="needs the base as it was trained on"):
        run_ppo({"reward": {"adapter": str(folder)}, "reference": "copied"}, "full", adapter=False)
    (folder / "stacked.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(TunekitError, match=r"was trained on top of another adapter, and use\.stack adds none"):
        run_ppo({"reward": {"adapter": str(folder)}}, "apart")
    (folder / "stacked.json").unlink()
    (folder / "value_head.safetensors").unlink()
    with pytest.raises(PlanError, match="holds an adapter without a value head"):
        run_ppo({"reward": {"adapter": str(folder)}}, "headless")


def test_a_classifier_of_several_labels_is_no_reward(run_ppo: Run, tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(str(tmp_path / "three"))
    tiny_tokenizer().save_pretrained(str(tmp_path / "three"))
    with pytest.raises(TunekitError, match="classifies into 3 labels, and a reward is one number"):
        run_ppo({"reward": {"model": str(tmp_path / "three")}})


def test_policy_values_reward_and_reference_are_one_base_with_adapters(
    run_ppo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four models would be four times the base; all weights alive while answers are valued are counted."""
    folder, _ = reward_stage(tmp_path / "reward", adapter=True)
    gc.collect()
    before = {each.data_ptr() for each in parameters_alive()}
    alive: list[int] = []

    def valued(*given: Any) -> list[float]:
        fresh = {each.data_ptr(): each.nbytes for each in parameters_alive() if each.data_ptr() not in before}
        alive.append(sum(fresh.values()))
        return run_head(*given)

    monkeypatch.setattr("tunekit_ppo.models.run_head", valued)
    ran = run_ppo({"reward": {"adapter": str(folder)}, "reference": "copied", "steps": 5})
    model = ran.result.bundle.model
    whole = sum(each.nbytes for each in model.parameters())
    base = sum(
        each.nbytes for name, each in model.named_parameters() if "lora" not in name and "value_head" not in name
    )
    adapters = whole - base
    assert base + adapters < max(alive) <= base + 2 * adapters, "the policy's with its head, and the reward's"
    copy = ran.result.facts["reference_bytes"]
    assert copy <= adapters
    assert (max(alive) + copy) / (4 * base) < 0.30


def parameters_alive() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is torch.nn.Parameter and each.device.type == "cpu"]


def test_sft_reward_and_ppo_run_in_one_recipe(tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(8)]
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(8)]
    small = {"batch": {"rows": 4}, "checkpoint": {"every": 0}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        tk_yaml(
            {
                "model": str(save_tiny_model(tmp_path / "tiny")),
                "data": {"rows": rows},
                "use": {"lora": {"rank": 4}, "precision": {"compute": "fp32"}},
                "stages": [
                    {"sft": small},
                    {"reward": {**small, "adapter": "judge", "data": {"rows": pairs}}},
                    {
                        "ppo": {
                            **small,
                            "learning_rate": 1e-9,
                            "rollout": {"prompts": 4, "max_new_tokens": 6},
                            "reward": {"adapter": "judge"},
                        }
                    },
                ],
                "output": str(tmp_path / "run"),
            }
        )
    )
    run = tk.Pipeline.from_file(recipe).run()
    told = [line for line in run.metrics if line["stage"] == "ppo" and line["kind"] == "step"]
    assert len(told) == 2 * 4
    assert "reward_adapter" in told[0]
    adapters = [tmp_path / "run" / stage / "adapter" for stage in ("stage-1-sft", "stage-3-ppo")]
    assert (adapters[1] / "value_head.safetensors").is_file()
    begun, left = (load_file(folder / "adapter_model.safetensors") for folder in adapters)
    assert begun.keys() == left.keys()
    for name, weight in begun.items():
        assert torch.allclose(weight, left[name], atol=1e-6), "it goes on from what sft has left"


def test_the_plan_knows_whether_a_reward_adapter_will_be_there(tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "tiny"))
    rows = [{"instruction": "q", "output": "a"}]
    for adapter in ("judge", "default"):
        pipeline = tk.Pipeline(model, rows, [Lora(rank=2)], [Ppo(reward={"adapter": adapter})])
        with pytest.raises(PlanError, match=r"stages.0.ppo.reward.adapter: is '\w+', which is neither the adapter of"):
            pipeline.plan(estimate=False)


def tk_yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value))


def test_data_of_every_kind_is_asked(run_ppo: Run) -> None:
    data: Examples = preferences()
    ran = run_ppo({"steps": 1}, data=data)
    assert {sample.reference for sample in ran.letters.asked} == {example.chosen[0].content for example in data}
