"""Mixtures of experts: a balance equal to transformers', with any objective; experts adapted where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import PatchSuite, default_plugin, run_context, tiny_bundle, tiny_tokenizer
from tunekit.values import ModelBundle
from tunekit_distributed.leaves import leaf_classes
from tunekit_dpo import Dpo
from tunekit_lora import Lora
from tunekit_moe import Moe
from tunekit_moe.objective import Balanced
from tunekit_sft import Sft
from tunekit_train import Batch, Provided, TrainConfig, train
from tunekit_train.forward import Forward, Strategy, prepared
from tunekit_train.layout import lay_padded
from tunekit_train.testing import FP32, CrossEntropy, bundle, context, family_model, random_items

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]


class TestMoe(PatchSuite):
    plugin = Moe(router_loss=0.5)
    companions = (Sft(),)
    changes = frozenset()

    def bundle(self) -> ModelBundle:
        model = family_model("mixtral")
        model.resize_token_embeddings(512)
        return ModelBundle(model.eval(), tiny_tokenizer(), "tiny", FP32)


@pytest.fixture
def batch() -> Batch:
    return Batch(tuple(random_items(4, shortest=2, longest=20)))


def transformers_own(model: Any, batch: Batch, weight: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What transformers computes from labels: mean cross-entropy plus the weighted balance, of a padded batch."""
    layout = lay_padded(batch.sequences, 0)
    labels = torch.full_like(layout.input_ids, -100)
    for row, sequence in enumerate(batch.sequences):
        kept = torch.tensor([bool(weight) for weight in sequence.weights])
        labels[row, : len(kept)][kept] = layout.input_ids[row, : len(kept)][kept]
    labels[:, 0] = -100  # nothing predicts a first token
    model.router_aux_loss_coef = weight
    given = {"input_ids": layout.input_ids, "attention_mask": layout.attention_mask, "labels": labels}
    out = model.train()(**given, output_router_logits=True)
    return out.loss, gradients(model, out.loss)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def whole_weights(batch: Batch) -> Batch:
    """The batch with each supervised token counted once, as labels count, and no first token supervised."""
    from dataclasses import replace

    items = []
    for item in batch.items:
        (sequence,) = item.sequences
        weights = (0.0, *(1.0 if weight else 0.0 for weight in sequence.weights[1:]))
        items.append(replace(item, sequences=(replace(sequence, weights=weights),)))
    return Batch(tuple(items))


def ours(model: Any, batch: Batch, strategy: str, weight: float, folder: Path, checkpointed: bool = False) -> Any:
    objective, chosen = Balanced(CrossEntropy(), weight), Strategy(strategy, "a test")  # type: ignore[arg-type]
    if checkpointed:
        model.activation_checkpointing_enable()
    job = type("Job", (), {"bundle": bundle(model)})
    with prepared(model.train(), chosen, autocast=False):
        sources = {need: need.prepare(job, None) for need in objective.needs}  # type: ignore[arg-type]
        forward = Forward(model, batch, chosen.lay_out(batch), objective.needs, sources)
        sums = objective.sums(batch, Provided({need: need.provide(forward) for need in objective.needs}))
        loss = sums.loss / objective.weight(batch)
        return loss, gradients(model, loss), sums


@pytest.mark.parametrize("strategy", ["segments", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(family: str, strategy: str, batch: Batch, tmp_path: Path) -> None:
    batch, model = whole_weights(batch), family_model(family)
    expected = transformers_own(model, batch, 0.7)
    loss, found, _ = ours(model, batch, strategy, 0.7, tmp_path)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    assert found.keys() == expected[1].keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=3e-6, msg=f"{name} {gradient}")
    without = transformers_own(model, batch, 0.0)
    router = next(name for name in found if name.endswith(("gate.weight", "router.weight")))
    assert not torch.allclose(found[router], without[1][router], rtol=1e-2)


def test_it_is_the_papers_formula_written_out(batch: Batch, tmp_path: Path) -> None:
    model = family_model("mixtral")
    asked: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, given, out: asked.append(out[0].detach()))
    _, _, sums = ours(model, batch, "segments", 1.0, tmp_path)
    probabilities = torch.cat(asked).softmax(-1)  # [layers x tokens, experts]
    chosen = torch.nn.functional.one_hot(probabilities.topk(2).indices, 4).sum(1).float()
    expected = 4 * (chosen.mean(0) * probabilities.mean(0)).sum()
    told = sums.metrics["router_loss"]
    assert told.total / told.weight == pytest.approx(float(expected), rel=1e-5)


def test_checkpointed_activations_give_the_same_gradients(batch: Batch, tmp_path: Path) -> None:
    plain = ours(family_model("mixtral"), batch, "segments", 0.7, tmp_path)
    checkpointed = ours(family_model("mixtral"), batch, "segments", 0.7, tmp_path, checkpointed=True)
    torch.testing.assert_close(checkpointed[0], plain[0])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(checkpointed[1][name], gradient)


def run_of(model: Any, folder: Path, weight: float | None = None, **options: Any) -> Any:
    folder.mkdir()
    objective = Balanced(CrossEntropy(), weight) if weight else CrossEntropy()
    events: list[Any] = []
    result = train(objective, random_items(8), bundle(model), TrainConfig(**options), context(folder, events))
    return result, events


def test_a_run_tells_both_losses_and_the_balance_grows_better(tmp_path: Path) -> None:
    options = {"steps": 25, "learning_rate": 1e-2, "evaluate": {"share": 0.25}, "batch": {"rows": 6}}
    result, events = run_of(family_model("mixtral"), tmp_path / "balanced", 2.0, **options)
    steps = [event.metrics for event in events if event.kind == "step"]
    for told in steps:
        assert told["loss"] == pytest.approx(told["task_loss"] + 2.0 * told["router_loss"], rel=1e-5)
    assert steps[-1]["router_loss"] < steps[0]["router_loss"]
    assert result.facts["router_loss_weight"] == 2.0
    evaluated = [event.metrics for event in events if event.kind == "evaluated"][-1]
    assert evaluated["eval_loss"] == pytest.approx(
        evaluated["eval_task_loss"] + 2.0 * evaluated["eval_router_loss"], rel=1e-5
    )


def test_frozen_layers_are_computed_each_time_with_it(tmp_path: Path) -> None:
    model = family_model("mixtral")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    result, _ = run_of(model, tmp_path / "frozen", 0.5, epochs=3)
    assert result.facts["frozen_layers"] == 0
    assert result.facts["frozen_layers_reason"] == "the objective asks for something that all layers say"


@pytest.fixture(scope="module", params=["mixtral", "qwen2_moe"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp(request.param) / "model"
    model = family_model(request.param)
    model.resize_token_embeddings(512)
    model.save_pretrained(made)
    tiny_tokenizer().save_pretrained(made)
    return str(made)


ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(8)]
PAIRS = [{"instruction": f"Say {n}.", "chosen": f"It is {n}.", "rejected": f"Not {n}?"} for n in range(6)]


def pipeline(folder: str, *use: Any, stage: Any, data: Any = ROWS) -> tk.Pipeline:
    use = (*use, default_plugin("tunekit_precision", compute="fp32"))
    return tk.Pipeline(model=folder, data=data, use=list(use), stages=[stage])


def test_recipes_of_two_families_learn_with_the_balance_and_adapted_experts(folder: str, tmp_path: Path) -> None:
    options = {"epochs": 4, "learning_rate": 1e-2, "batch": {"max_length": 64}}
    run = pipeline(folder, Moe(), Lora(rank=4, parameters=EXPERTS), stage=Sft(**options)).run(tmp_path / "sft")
    steps = [line for line in run.metrics if line["kind"] == "step"]
    assert steps[-1]["task_loss"] < steps[0]["task_loss"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["task_loss"] + 0.001 * steps[0]["router_loss"], rel=1e-5)
    facts = run.record.finished_stages()[0]["facts"]
    assert facts["strategy"] == "segments"
    assert facts["router_loss_weight"] == 0.001
    moved = [name for name, each in run.bundle.model.named_parameters() if "lora_B" in name and each.any()]
    assert any(".experts." in name for name in moved)
    assert any("q_proj" in name for name in moved)


def test_a_preference_objective_is_balanced_too(folder: str, tmp_path: Path) -> None:
    stage = Dpo(epochs=1, batch={"max_length": 64, "rows": 3})
    run = pipeline(folder, Moe(router_loss=0.1), Lora(rank=4), stage=stage, data=PAIRS).run(tmp_path / "dpo")
    first = next(line for line in run.metrics if line["kind"] == "step")
    assert first["task_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["loss"] == pytest.approx(first["task_loss"] + 0.1 * first["router_loss"], rel=1e-5)


def adapted(family: str, *plugins: Any, folder: Path) -> Any:
    made = ModelBundle(family_model(family), None, "tiny", FP32)
    return run_context(*plugins, folder=folder).calls.own(
        "tunekit_attach_adapter", bundle=made, context=run_context(*plugins, folder=folder)
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 23)[None]).logits


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT reads a name that was changed
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_each_expert_has_an_update_of_its_own_that_trains_saves_and_merges(family: str, tmp_path: Path) -> None:
    made = adapted(family, Lora(rank=4, alpha=8, parameters=EXPERTS), folder=tmp_path)
    model, base = made.model, logits(family_model(family))
    wrappers = {name: m for name, m in model.named_modules() if type(m).__name__ == "ParamWrapper"}
    assert {m.parameter_name for m in wrappers.values()} == {"gate_up_proj", "down_proj"}
    assert len(wrappers) == 4
    for wrapper in wrappers.values():
        assert wrapper.lora_A["default"].weight.shape[0] == 4 * 4  # rank times experts
        assert wrapper.scaling["default"] == 2.0
    attention = [m for name, m in model.named_modules() if name.endswith("q_proj") and hasattr(m, "lora_A")]
    assert {m.lora_A["default"].weight.shape[0] for m in attention} == {4}
    torch.testing.assert_close(logits(model), base)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids, losses = torch.arange(3, 23)[None], []
    for _ in range(5):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(model)
    assert made.save is not None
    made.save(model, tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(family_model(family), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), trained)
    torch.testing.assert_close(logits(again.merge_and_unload()), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_without_it_low_rank_adapters_leave_fused_experts_alone(family: str, tmp_path: Path) -> None:
    """PEFT turns names that an older architecture gave its experts into fused ones, and adapts these unasked."""
    model = adapted(family, Lora(rank=4), folder=tmp_path).model
    assert not any(type(module).__name__ == "ParamWrapper" for module in model.modules())
    ranks = {m.lora_A["default"].weight.shape[0] for m in model.modules() if hasattr(m, "lora_A")}
    assert ranks == {4}


def test_a_model_without_a_router_is_refused() -> None:
    with pytest.raises(PlanError, match=r"use.moe: adds the loss of a router, and LlamaForCausalLM has none"):
        Moe().tunekit_patch(bundle=tiny_bundle())


def test_a_model_whose_config_gives_the_balance_no_weight_wants_one() -> None:
    made = TestMoe().bundle()
    made.model.config.router_aux_loss_coef = 0.0
    with pytest.raises(PlanError, match=r"use.moe.router_loss: is not set, and the config of MixtralForCausalLM"):
        Moe().tunekit_patch(bundle=made)
    assert "counts 0.3" in Moe(router_loss=0.3).tunekit_patch(bundle=made).summary


def test_micro_batches_are_said_not_to_be_one_large_batch(folder: str) -> None:
    plan = pipeline(folder, Moe(), Lora(rank=4), stage=Sft(batch={"accumulation": 2, "max_length": 64})).plan()
    assert plan.estimate is not None
    assert any("experts are kept evenly used inside each micro-batch" in note for note in plan.estimate.notes)


def test_blocks_with_experts_are_found_for_zero_3_fused_or_one_by_one() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    assert leaf_classes(torch.nn.Sequential(Block(), torch.nn.Linear(4, 4), Block())) == [
        f"{__name__}.{Block.__qualname__}"
    ]
    (found,) = leaf_classes(family_model("mixtral"))
    assert found == "transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock"
    assert not leaf_classes(family_model("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_counts_what_the_experts_keep_in_any_dtype(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the kernels of transformers, which the meta device knows for bf16 alone."""
    from tunekit_train import shapes
    from tunekit_train.testing import BF16

    skeleton = family_model(family).to("meta")
    ours, wide = (shapes.saved_bytes(skeleton, policy, 4000) for policy in (BF16, FP32))
    assert ours < wide < 2.2 * ours
    monkeypatch.setattr(shapes, "with_shapes_of_experts_", lambda model: 0)
    assert ours == pytest.approx(shapes.saved_bytes(skeleton, BF16, 4000), rel=0.25)
