"""A training run as a whole: what it leaves behind, what it tells, and how it ends when it cannot go on."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import DataError, DivergedError, InterruptedRunError, TunekitError
from tunekit_train import AdamW, Batch, Item, Need, Objective, Provided, Sum, Sums, TokenLogProbs, TokenSequence
from tunekit_train.checkpoints import Checkpoints
from tunekit_train.testing import BF16, CrossEntropy, bundle, context, random_items, tiny_llama, with_lora


def test_training_lowers_the_loss(run_training: Callable[..., Any]) -> None:
    losses = run_training(epochs=15, learning_rate=1e-2).values("loss")
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_told_is_the_weighted_mean_over_the_step(run_training: Callable[..., Any]) -> None:
    trained = run_training(items=random_items(4), steps=1, schedule={"warmup_steps": 1})
    total, weight = torch.zeros(()), 0.0
    model = tiny_llama().eval()
    for item in random_items(4):
        sequence = item.sequences[0]
        log_probs = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        for at in range(1, len(sequence.ids)):
            total = total - sequence.weights[at] * log_probs[at - 1, sequence.ids[at]]
            weight += sequence.weights[at]
    assert trained.values("loss")[0] == pytest.approx(float(total.detach()) / weight, rel=1e-5)


def test_evaluation_is_the_mean_over_all_tokens_whatever_the_batches(run_training: Callable[..., Any]) -> None:
    def eval_loss(rows: int) -> float:
        options = {"items": random_items(12), "steps": 1, "evaluate": {"share": 0.5}, "schedule": {"warmup_steps": 1}}
        return float(run_training(batch={"rows": rows}, **options).result.metrics["eval_loss"])

    assert eval_loss(1) == pytest.approx(eval_loss(5), rel=1e-5)


def test_events_come_in_order_with_all_their_metrics(run_training: Callable[..., Any]) -> None:
    trained = run_training(steps=2, evaluate={"share": 0.2}, checkpoint={"every": 1})
    kinds = [event.kind for event in trained.events]
    assert kinds == ["started", "step", "saved", "step", "evaluated", "finished"]
    assert {event.total_steps for event in trained.events} == {2}
    step = trained.metrics("step")[0]
    assert step.keys() >= {"loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "tokens_per_second"}
    assert step["tokens"] > step["supervised_tokens"] > 0
    assert step["tokens_per_second"] > 0


def test_an_adapter_is_saved_in_pefts_format_and_gives_the_same_logits(run_training: Callable[..., Any]) -> None:
    trained = run_training(with_lora(tiny_llama()), learning_rate=1e-2)
    (adapter,) = [artefact.path for artefact in trained.result.artefacts if artefact.kind == "adapter"]
    ids = torch.arange(3, 20)[None]
    again = with_lora(tiny_llama()).eval()
    again.load_adapter(str(adapter), "default")
    assert torch.equal(again(ids).logits, trained.result.bundle.model(ids).logits)
    assert (adapter / "tokenizer.json").exists()


def test_a_whole_model_is_saved_where_there_is_no_adapter(run_training: Callable[..., Any]) -> None:
    trained = run_training(learning_rate=1e-2)
    (saved,) = [artefact.path for artefact in trained.result.artefacts if artefact.kind == "model"]
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in trained.weights.items() if name in weights)


def test_the_result_says_what_was_done(run_training: Callable[..., Any]) -> None:
    cut = TokenSequence((5, 6, 7), (0.0, 1.0, 1.0), 9, "rows.json, row 9", cut=4)
    trained = run_training(items=[*random_items(3), Item((cut,))])
    facts, metrics = trained.result.facts, trained.result.metrics
    assert facts["strategy"] == "segments"
    assert (facts["items_trained_on"], facts["items_held_out"], facts["packing_efficiency"]) == (4, 0, None)
    assert facts["tokens"] == 3 + sum(item.tokens for item in random_items(3))
    assert metrics["train_loss_first"] == trained.values("loss")[0]
    assert metrics["peak_memory_bytes"] > 50e6
    assert (trained.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_is_left_as_it_was_found(run_training: Callable[..., Any]) -> None:
    model = tiny_llama()
    attention, cache = model.config._attn_implementation, model.config.use_cache
    run_training(model)
    assert (model.config._attn_implementation, model.config.use_cache) == (attention, cache)
    assert not model.training


@pytest.mark.parametrize("adapted", [False, True])
def test_what_trains_is_in_the_trainable_dtype_and_what_is_frozen_stays(adapted: bool, tmp_path: Path) -> None:
    from tunekit_train import TrainConfig, train

    model = tiny_llama().to(torch.bfloat16)
    model = with_lora(model) if adapted else model
    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    surroundings = context(tmp_path, precision=BF16)
    result = train(CrossEntropy(), random_items(8), bundle(model, BF16), TrainConfig(steps=2), surroundings)
    for name, parameter in result.bundle.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
        assert parameter.requires_grad or torch.equal(parameter, frozen[name])


def test_products_run_in_the_compute_dtype(tmp_path: Path) -> None:
    from tunekit_train import TrainConfig, train

    seen = set()
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    train(CrossEntropy(), random_items(4), bundle(model, BF16), TrainConfig(steps=1), context(tmp_path, precision=BF16))
    assert seen == {torch.bfloat16}


class Explodes(CrossEntropy):
    """The loss is no number in the sixth micro-batch."""

    def __init__(self) -> None:
        self.calls = 0

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.calls += 1
        sums = super().sums(batch, provided)
        return Sums(sums.loss * math.nan) if self.calls == 6 else sums


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as error:
        run_training(objective=Explodes(), steps=9, checkpoint={"every": 2}, folder=tmp_path / "run")
    assert "the loss of sft is not a finite number at step 6" in str(error.value)
    assert "step-4" in str(error.value)
    assert "lower stages.0.sft.learning_rate (now 0.0002)" in str(error.value)
    assert [step for step, _ in Checkpoints(tmp_path / "run" / "checkpoints", 2).complete()] == [2, 4]


def test_a_gradient_that_is_no_number_stops_before_the_weights_move(run_training: Callable[..., Any]) -> None:
    model = tiny_llama()
    before = {name: each.clone() for name, each in model.named_parameters()}
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="the gradient norm of sft is not a finite number at step 1; no checkpoint"):
        run_training(model)
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())


class CtrlC(CrossEntropy):
    """The user presses Ctrl-C in the second micro-batch of step 2, `times` times."""

    def __init__(self, times: int = 1) -> None:
        self.calls, self.times = 0, times

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.calls += 1
        if self.calls == 4:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return super().sums(batch, provided)


def test_ctrl_c_saves_at_the_next_step_border_and_says_how_to_go_on(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 5, "batch": {"rows": 2, "accumulation": 2}}
    folder = tmp_path / "run" / "stage-1-sft"
    folder.parent.mkdir()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as error:
        run_training(objective=CtrlC(), folder=folder, **options)
    assert str(error.value) == f"sft was interrupted; step 2 is saved; go on with `tunekit resume {folder.parent}`"
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run_training(folder=folder, resume=True, **options)
    assert resumed.steps("started") == [2]
    assert resumed.steps("step") == [3, 4, 5]
    for name, value in run_training(**options).weights.items():
        assert torch.equal(value, resumed.weights[name])


def test_a_second_ctrl_c_stops_at_once(run_training: Callable[..., Any]) -> None:
    with pytest.raises(InterruptedRunError, match="no checkpoint had been written yet"):
        run_training(objective=CtrlC(times=2), steps=5, batch={"rows": 2, "accumulation": 2})


def test_a_run_that_may_resume_but_has_no_checkpoint_starts_at_the_start(run_training: Callable[..., Any]) -> None:
    assert run_training(resume=True).steps("started") == [0]


def test_ids_and_weights_may_be_arrays_and_give_the_same_numbers(run_training: Callable[..., Any]) -> None:
    def with_arrays(item: Item) -> Item:
        (sequence,) = item.sequences
        ids, weights = np.array(sequence.ids, np.int32), np.array(sequence.weights, np.float32)
        return Item((replace(sequence, ids=ids, weights=weights),))  # type: ignore[arg-type]

    options = {"steps": 4, "checkpoint": {"every": 2}, "evaluate": {"share": 0.2}}
    plain = run_training(items=random_items(12), **options)
    arrays = run_training(items=[with_arrays(item) for item in random_items(12)], **options)
    assert arrays.steps("saved") == [2]
    assert arrays.values("loss") == plain.values("loss")
    assert arrays.result.metrics["eval_loss"] == plain.result.metrics["eval_loss"]


def test_too_few_examples_are_refused(run_training: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"stages.0.sft.data: 1 examples are too few"):
        run_training(items=random_items(1), evaluate={"share": 0.5})


def test_a_model_without_trainable_parameters_is_refused(run_training: Callable[..., Any]) -> None:
    with pytest.raises(TunekitError, match="no parameter of the model trains"):
        run_training(tiny_llama().requires_grad_(False))


class Pairs(Objective):
    """A third party's loss over pairs: the margin between the log-probabilities of two sequences."""

    couples_batch = True
    needs: tuple[Need[Any], ...] = (TokenLogProbs(),)

    def weight(self, batch: Batch) -> float:
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        scores = provided[TokenLogProbs()]
        totals = torch.zeros(len(batch.sequences)).index_add(0, scores.owners, scores.log_probs)
        margin = totals[0::2] - totals[1::2]
        wins = Sum(float((margin > 0).sum()), len(margin))
        return Sums(-torch.nn.functional.logsigmoid(margin).sum(), {"accuracy": wins})

    def summary(self, means: Any) -> dict[str, float]:
        return {**means, "errors": 1 - means["accuracy"]}


def test_an_objective_over_pairs_with_metrics_of_its_own_needs_no_edit_of_the_engine(
    run_training: Callable[..., Any],
) -> None:
    singles = [item.sequences[0] for item in random_items(24, shortest=6)]
    pairs = [Item((left, right)) for left, right in zip(singles[::2], singles[1::2], strict=True)]
    trained = run_training(items=pairs, objective=Pairs(), epochs=16, learning_rate=1e-2, evaluate={"share": 0.2})
    assert trained.values("accuracy")[-1] == 1.0
    assert trained.metrics("evaluated")[-1].keys() == {"eval_loss", "eval_accuracy", "eval_errors"}
    assert trained.result.facts["couples_batch"] is True


class OwnOptimizer(AdamW):
    """Remembers what it was asked for."""

    def tunekit_optimizer(self, **arguments: Any) -> Any:
        self.asked = arguments
        return super().tunekit_optimizer(**arguments)


def test_the_optimiser_is_asked_of_the_plugin_that_owns_it(run_training: Callable[..., Any]) -> None:
    plugin = OwnOptimizer()
    run_training(with_lora(tiny_llama()), plugin=plugin, learning_rate=3e-3, weight_decay=0.1, epochs=2)
    settings = plugin.asked["settings"]
    assert (settings.learning_rate, settings.weight_decay, settings.total_steps) == (3e-3, 0.1, 6)
    assert all("lora_" in name for name, _ in plugin.asked["named_parameters"])


class Counting(CrossEntropy):
    """Tells how many sequences there are in a batch."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        counted = {"sequences": Sum(float(len(batch.sequences)), 1.0)}
        return replace(super().sums(batch, provided), metrics=counted)


def test_what_an_objective_tells_of_the_held_out_part_closes_the_stage(run_training: Callable[..., Any]) -> None:
    result = run_training(
        objective=Counting(), items=random_items(8), evaluate={"share": 0.5}, batch={"rows": 4}
    ).result
    assert result.metrics["eval_sequences"] == 4
    assert not any("runtime" in name or "per_second" in name for name in result.metrics if name.startswith("eval_"))
