"""Frozen lower layers that are computed once, against transformers running all of them each time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.errors import DataError, InterruptedRunError
from tunekit.testing.options import shows
from tunekit_train import Batch, Item, Items, Job, TrainConfig, train
from tunekit_train.forward import Strategy, prepared
from tunekit_train.frozen_layers import segments
from tunekit_train.hidden_file import HiddenFile
from tunekit_train.layout import lay_shared
from tunekit_train.segments import FAMILIES
from tunekit_train.sources import Sources
from tunekit_train.testing import (
    BF16,
    CrossEntropy,
    bundle,
    context,
    family_model,
    random_items,
    tiny_llama,
    with_lora,
)

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
"""fp32: the same sums in another order; the tiny models' gradients are of the order of 1e-2."""


def upper_only(model: Any) -> Any:
    """Freeze all but the last layer."""
    layers = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    model.requires_grad_(False)
    layers[-1].requires_grad_(True)
    return model


def pairs(count: int) -> list[Item]:
    """Items of two sequences with a prompt in common, longer than a sliding window, and one without."""
    items = random_items(count, shortest=14, longest=20)
    others = random_items(count, seed=1, shortest=2, longest=6)
    made = []
    for item, other in zip(items, others, strict=True):
        own, answer = item.sequences[0], other.sequences[0]
        ids, weights = (*own.ids[:10], *answer.ids), (*own.weights[:10], *answer.weights)
        made.append(Item((own, replace(own, ids=ids, weights=weights))))
    return [*made, *random_items(1, seed=2)]


def plain(model: Any, items: list[Item]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Transformers alone, each sequence in a batch of its own; the loss and all gradients."""
    total = torch.zeros(())
    for sequence in Batch(tuple(items)).sequences:
        log_probs = model(input_ids=torch.tensor([list(sequence.ids)])).logits[0].float().log_softmax(-1)
        for at in range(1, len(sequence.ids)):
            total = total - sequence.weights[at] * log_probs[at - 1, sequence.ids[at]]
    return total, gradients_of(model, total)


def gradients_of(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@contextmanager
def layers_run() -> Iterator[list[int]]:
    """The places of the layers of Llamas that attend inside; hooks of the model itself would change what it does."""
    seen: list[int] = []

    def note(module: Any, given: Any, output: Any) -> None:
        if type(module).__name__ == "LlamaAttention":
            seen.append(module.layer_idx)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_upper_layers_alone_give_the_loss_and_gradients_of_the_whole_model(family: str, tmp_path: Path) -> None:
    model, items = upper_only(family_model(family)), pairs(3)
    expected = plain(model, items)
    for number, strategy in enumerate(
        (Strategy("segments", "test", share_prompts=True), Strategy("segments", "test"), Strategy("padded", "test"))
    ):
        (tmp_path / str(number)).mkdir()
        surroundings = context(tmp_path / str(number))
        job = Job(CrossEntropy(), Items(items), bundle(model), TrainConfig(epochs=2), surroundings, strategy)
        with prepared(model, strategy, autocast=False):
            sources = Sources(job, None)
            assert sources.frozen.count == 1, sources.frozen.reason
            with torch.no_grad():  # what the frozen layer says is read, and not computed
                poisoned = {each: each.clone() for each in model.parameters() if not each.requires_grad}
                layers = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
                for each in layers[0].parameters():
                    each.fill_(torch.nan)
            batch = Batch(tuple(items))
            total = CrossEntropy().sums(batch, sources.provide(model, batch, torch.device("cpu"))).loss
            found = total, gradients_of(model, total)
        with torch.no_grad():
            for each, value in poisoned.items():
                each.copy_(value)
        torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
        assert found[1].keys() == expected[1].keys()
        for name in expected[1]:
            message = partial("{} {} {}".format, strategy, name)
            torch.testing.assert_close(found[1][name], expected[1][name], **TOLERANCE, msg=message)


@shows("compute.frozen_layers")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_takes_the_same_steps_and_runs_frozen_layers_once(precision: str, tmp_path: Path) -> None:
    def trained(mode: str) -> Any:
        model = upper_only(tiny_llama(num_hidden_layers=3))
        policy = {} if precision == "fp32" else {"precision": BF16}
        (tmp_path / mode).mkdir()
        options = {"epochs": 3, "learning_rate": 1e-2, "evaluate": {"share": 0.2}, "compute": {"frozen_layers": mode}}
        with layers_run() as seen:
            given = bundle(model, *policy.values()), TrainConfig(**options), context(tmp_path / mode, **policy)
            return train(CrossEntropy(), random_items(10), *given), seen

    (once, runs), (each_time, all_runs) = trained("auto"), trained("never")
    assert (once.facts["frozen_layers"], each_time.facts["frozen_layers"]) == (2, 0)
    assert once.facts["frozen_layers_reason"].startswith("2 layers below the first that trains, for 30 items instead")
    assert each_time.facts["frozen_layers_reason"] == "compute.frozen_layers is never"
    assert runs.count(2) == all_runs.count(2) == 9, "two micro-batches in each of three epochs, and an evaluation"
    assert all_runs.count(0) == 9
    assert runs.count(0) == 3 + 3, "three batches in the pass, three to see that it is right"
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for name in ("train_loss_last", "eval_loss"):
        assert once.metrics[name] == pytest.approx(each_time.metrics[name], rel=tolerance)
    for (name, left), right in zip(
        once.bundle.model.named_parameters(), each_time.bundle.model.parameters(), strict=True
    ):
        if left.requires_grad and precision == "fp32":
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5, msg=partial("{} {}".format, name))
    assert not (tmp_path / "auto" / "frozen_layers").exists(), "nothing is left where nobody will ask again"


def test_an_adapter_on_the_upper_layers_leaves_the_lower_ones_out_too(run_training: Callable[..., Any]) -> None:
    def trained(mode: str) -> Any:
        model = with_lora(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[1])
        return run_training(model, epochs=2, compute={"frozen_layers": mode})

    once, each_time = trained("auto"), trained("never")
    assert once.result.facts["frozen_layers"] == 1
    assert once.values("loss") == pytest.approx(each_time.values("loss"), rel=1e-5)


def noisy() -> Any:
    model = upper_only(tiny_llama())
    model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: out + torch.rand_like(out) if module.training else None
    )
    return model


def listening() -> Any:
    model = upper_only(tiny_llama())
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    return model


def whole_embeddings() -> Any:
    model = upper_only(tiny_llama())
    model.get_output_embeddings().requires_grad_(True)  # tied
    return model


def unheard_of() -> Any:
    model = upper_only(tiny_llama())
    model.config.model_type = "unheard_of"
    return model


OFF: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "all weights train": (tiny_llama, {}, "the first layer trains"),
    "LoRA": (lambda: with_lora(tiny_llama()), {}, "the first layer trains"),
    "noise": (noisy, {}, "not the same each time: dropout, or noise on the embeddings"),
    "dropout": (lambda: upper_only(tiny_llama(attention_dropout=0.1)), {}, "not the same each time: dropout"),
    "tied head": (whole_embeddings, {}, "model.embed_tokens.weight trains, and the layers below"),
    "hook": (listening, {}, "a hook listens inside a layer that would not run"),
    "family": (unheard_of, {}, "unheard_of is not among the models verified without padding"),
    "one epoch": (lambda: upper_only(tiny_llama()), {"epochs": 1}, "no item comes more than once"),
    "size": (
        lambda: upper_only(tiny_llama()),
        {"compute": {"frozen_layers_gib": 1e-6}},
        "GiB, more than compute.frozen_layers_gib: 1e-06",
    ),
}


@shows("compute.frozen_layers_gib")
@pytest.mark.parametrize("case", OFF)
def test_it_is_off_where_it_would_be_wrong_or_no_gain_and_the_record_says_why(
    case: str, run_training: Callable[..., Any]
) -> None:
    make, options, reason = OFF[case]
    facts = run_training(make(), **{"epochs": 2, **options}).result.facts
    assert facts["frozen_layers"] == 0
    assert reason in facts["frozen_layers_reason"]


def test_the_probe_draws_no_random_numbers_of_the_training(run_training: Callable[..., Any]) -> None:
    def losses(mode: str) -> Any:
        model = upper_only(tiny_llama(attention_dropout=0.5))
        return run_training(model, epochs=2, compute={"frozen_layers": mode}).values("loss")

    assert losses("auto") == losses("never")


class Stops(CrossEntropy):
    """Ctrl-C in the third micro-batch."""

    calls = 0

    def sums(self, batch: Any, provided: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sums(batch, provided)


@pytest.mark.parametrize("file", ["found", "gone"])
def test_a_run_that_goes_on_reaches_the_same_bits(file: str, run_training: Callable[..., Any], tmp_path: Path) -> None:
    options = {"epochs": 2, "learning_rate": 1e-2, "folder": tmp_path / "run"}
    with pytest.raises(InterruptedRunError):
        run_training(upper_only(tiny_llama()), objective=Stops(), **options)
    kept = tmp_path / "run" / "frozen_layers"
    if file == "gone":
        shutil.rmtree(kept)
    with layers_run() as seen:
        resumed = run_training(upper_only(tiny_llama()), resume=True, **options)
    assert seen.count(0) == (0 if file == "found" else 3)
    whole = run_training(upper_only(tiny_llama()), **{**options, "folder": tmp_path / "whole"})
    assert resumed.values("loss") == whole.values("loss")[3:]
    assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())


def test_what_a_run_began_without_it_goes_on_without(run_training: Callable[..., Any], tmp_path: Path) -> None:
    options = {"epochs": 2, "folder": tmp_path / "run"}
    small = {"compute": {"frozen_layers_gib": 1e-6}}
    with pytest.raises(InterruptedRunError):
        run_training(upper_only(tiny_llama()), objective=Stops(), **options, **small)
    assert run_training(upper_only(tiny_llama()), resume=True, **options).result.facts["frozen_layers"] == 0


def test_a_pass_that_was_killed_begins_again(run_training: Callable[..., Any], tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    model, calls = upper_only(tiny_llama()), [0]

    def kill(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:  # two to probe, then the second batch of the pass
            raise KilledError

    model.get_input_embeddings().register_forward_hook(kill)
    with pytest.raises(KilledError):
        run_training(model, epochs=2, folder=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("*frozen*")] == [".partial-frozen_layers"]
    assert run_training(upper_only(tiny_llama()), epochs=2, folder=tmp_path / "run").result.facts["frozen_layers"] == 1
    assert not list((tmp_path / "run").glob("*frozen*"))


def test_segments_lead_back_to_their_sequences() -> None:
    single, (pair,) = random_items(2), pairs(1)[:1]
    layout = lay_shared([single[0], pair, single[1]])
    lengths = [len(each) for each in (single[0].sequences[0], *pair.sequences, single[1].sequences[0])]
    assert list(segments(layout)) == [
        (0, 0, lengths[0]),
        (1, 0, 10),
        (1, 10, lengths[1]),
        (2, 10, lengths[2]),
        (3, 0, lengths[3]),
    ]


def test_a_sequence_that_is_not_in_the_file_is_said_with_its_row(tmp_path: Path) -> None:
    (one,), (other,) = (item.sequences for item in random_items(2))
    made = HiddenFile.make(tmp_path / "kept", "mark", [(one, torch.arange(2.0 * len(one)).view(-1, 2))])
    assert torch.equal(made.read(one), torch.arange(2.0 * len(one)).view(-1, 2))
    assert json.loads((tmp_path / "kept" / "manifest.json").read_text())["fingerprint"] == "mark"
    assert HiddenFile.find(tmp_path / "kept", "another") is None
    with pytest.raises(DataError, match=r"rows.json, row 2: was not there when the frozen layers were computed"):
        made.read(other)


def test_what_is_kept_is_not_found_again_once_a_weight_that_is_stored_in_few_bits_is_another() -> None:
    """Such a weight is no parameter, but buffers; frequencies of positions, which are not saved, are no weight."""
    from tunekit_train import hidden_file, reference_file

    model = tiny_llama().requires_grad_(False)
    words = torch.arange(64, dtype=torch.int32)
    model.model.layers[0].mlp.register_buffer("qweight", words.clone())
    sequences = [item.sequences[0] for item in random_items(2)]

    def digests() -> list[str]:
        hidden = hidden_file.fingerprint_of(model, 1, "float32", sequences)
        return [hidden, reference_file.fingerprint_of(model, sequences)]

    before = digests()
    model.model.rotary_emb.inv_freq.mul_(2)
    assert digests() == before
    model.model.layers[0].mlp.qweight[5] += 1
    assert all(now != then for now, then in zip(digests(), before, strict=True))
    model.model.layers[0].mlp.qweight.copy_(words)
    assert digests() == before
