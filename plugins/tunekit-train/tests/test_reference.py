"""The reference policy against a deep copy of the model, made before the stage: switched off, cached, or refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.errors import DataError, InterruptedRunError, PlanError
from tunekit_train import Batch, Item, Need, Objective, Provided, ReferenceLogProbs, Sum, Sums, TokenLogProbs
from tunekit_train.reference import Copied, live_as_before
from tunekit_train.reference_file import ReferenceFile
from tunekit_train.testing import BF16, bundle, context, family_model, random_items, tiny_llama, with_lora

EXACT = {"rtol": 0.0, "atol": 1e-6}


class Distance(Objective):
    """Pushes the policy up, and remembers policy and reference of each sequence by its row."""

    def __init__(self, mode: Any = "auto") -> None:
        self.reference = ReferenceLogProbs(mode)
        self.policy_of: dict[int, list[torch.Tensor]] = {}
        self.reference_of: dict[int, list[torch.Tensor]] = {}
        self.steps = 0

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        return (TokenLogProbs(), self.reference)

    def weight(self, batch: Batch) -> float:
        return float(batch.supervised_tokens)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        policy, reference = provided[TokenLogProbs()], provided[self.reference]
        assert policy.log_probs.requires_grad == torch.is_grad_enabled()
        assert not reference.log_probs.requires_grad
        assert torch.equal(policy.owners, reference.owners)
        for owner, sequence in enumerate(batch.sequences):
            mine = policy.owners == owner
            self.policy_of.setdefault(sequence.row, []).append(policy.log_probs[mine].detach().clone())
            self.reference_of.setdefault(sequence.row, []).append(reference.log_probs[mine].clone())
        distance = (policy.log_probs.detach() - reference.log_probs).abs().sum()
        return Sums(-policy.log_probs.sum(), {"distance": Sum(float(distance), float(batch.supervised_tokens))})


def of_copy(model: Any, item: Item) -> torch.Tensor:
    """Transformers alone, one sequence in a batch of its own."""
    (sequence,) = item.sequences
    with torch.no_grad():
        log_probs = model.eval()(torch.tensor([list(sequence.ids)])).logits[0].float().log_softmax(-1)
    found = [log_probs[at - 1, sequence.ids[at]] for at in range(1, len(sequence.ids)) if sequence.weights[at]]
    return torch.stack(found)


def fresh_lora(dropout: float = 0.0, **options: Any) -> Any:
    """A LoRA adapter as PEFT makes it: its second matrix is zero."""
    import warnings

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    given = {"r": 4, "lora_dropout": dropout, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(tiny_llama(), LoraConfig(**{**given, **options}))


def trained_biases() -> Any:
    model = fresh_lora()
    model.base_model.model.model.norm.weight.requires_grad_(True)
    return model


def some_weights() -> Any:
    model = tiny_llama().requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    return model


STARTS: dict[str, Callable[[], Any]] = {
    "fresh LoRA": fresh_lora,
    "fresh LoRA with dropout": lambda: fresh_lora(0.3),
    "fresh DoRA": lambda: fresh_lora(use_dora=True),
    "trained LoRA": lambda: with_lora(tiny_llama(), 0.3),
    "PiSSA": lambda: fresh_lora(init_lora_weights="pissa"),
    "a whole module beside": lambda: fresh_lora(modules_to_save=["norm"]),
    "a norm beside": trained_biases,
    "all weights": tiny_llama,
    "some weights": some_weights,
}
SWITCHABLE = {"fresh LoRA", "fresh LoRA with dropout", "fresh DoRA"}


@pytest.mark.parametrize(
    ("start", "epochs"), [*((start, 1) for start in STARTS), ("fresh LoRA with dropout", 3), ("trained LoRA", 3)]
)
def test_the_reference_is_the_policy_at_the_start_of_the_stage(
    start: str, epochs: int, run_training: Callable[..., Any]
) -> None:
    model, items, objective = STARTS[start](), random_items(9), Distance()
    before = copy.deepcopy(model)
    options = {"epochs": epochs, "learning_rate": 1e-2, "evaluate": {"share": 0.2}, "batch": {"rows": 3}}
    trained = run_training(model, items, objective, **options)
    wanted = "switch_off" if start in SWITCHABLE and epochs == 1 else "cached"
    assert trained.result.facts["reference"] == wanted, trained.result.facts["reference_reason"]
    assert objective.reference_of.keys() == {item.sequences[0].row for item in items}
    for item in items:
        for found in objective.reference_of[item.sequences[0].row]:
            torch.testing.assert_close(found, of_copy(before, item), **EXACT)
    moved = [abs(objective.policy_of[row][-1] - found[-1]).max() for row, found in objective.reference_of.items()]
    assert max(moved) > 1e-3, "the policy has moved away meanwhile"


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt2", "gpt_oss", "mistral", "qwen3"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_the_reference_of_every_kind_of_attention_is_what_transformers_says(
    family: str, run_training: Callable[..., Any]
) -> None:
    model, items, objective = with_lora(family_model(family)), random_items(6), Distance()
    before = copy.deepcopy(model)
    facts = run_training(model, items, objective, steps=2, learning_rate=1e-2, batch={"rows": 6}).result.facts
    assert (facts["reference"], facts["strategy"]) == ("cached", "segments")
    for item in items:
        for found in objective.reference_of[item.sequences[0].row]:
            torch.testing.assert_close(found, of_copy(before, item), rtol=0.0, atol=5e-6)


@pytest.mark.parametrize("start", STARTS)
def test_a_frozen_copy_is_the_policy_at_the_start_whatever_trains(start: str, run_training: Callable[..., Any]) -> None:
    model, items, objective = STARTS[start](), random_items(6), Distance("copied")
    before = copy.deepcopy(model)
    cached = run_training(copy.deepcopy(model), items, Distance("cached"), learning_rate=1e-2)
    trained = run_training(model, items, objective, learning_rate=1e-2)
    for item in items:
        for found in objective.reference_of[item.sequences[0].row]:
            torch.testing.assert_close(found, of_copy(before, item), **EXACT)
    assert trained.values("loss") == cached.values("loss"), "the copy disturbed the gradient"
    count = sum(each.numel() for each in before.parameters() if each.requires_grad)
    assert trained.result.facts["reference_bytes"] == 4 * count


def test_a_copy_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    from tunekit_train import TrainConfig, train
    from tunekit_train.testing import context as stage

    objective, model = Distance("copied"), with_lora(tiny_llama())
    before, items = copy.deepcopy(model), random_items(8)
    config = TrainConfig(epochs=4, learning_rate=1e-2, checkpoint={"every": 2})

    def stop(event: Any) -> None:
        if event.kind == "saved" and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        train(Distance("copied"), items, bundle(copy.deepcopy(model)), config, stage(tmp_path, emit=stop))
    train(objective, items, bundle(model), config, stage(tmp_path, resume=True))
    for row, found in objective.reference_of.items():
        torch.testing.assert_close(found[-1], of_copy(before, items[row - 1]), **EXACT)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("trained LoRA", "the adapter is not fresh: it changes base_model.model.model.layers.0.self_attn.q_proj"),
        ("PiSSA", "the adapter is not fresh"),
        ("a whole module beside", "modules_to_save.default.weight trains outside the adapter"),
        ("a norm beside", "norm.weight trains outside the adapter"),
        ("all weights", "no adapter was attached: the weights themselves train"),
        ("some weights", "no adapter was attached"),
    ],
)
def test_the_record_says_why_the_adapter_is_not_switched_off(
    start: str, reason: str, run_training: Callable[..., Any]
) -> None:
    facts = run_training(STARTS[start](), objective=Distance(), steps=1).result.facts
    assert reason in facts["reference_reason"]
    assert facts["reference_sequences"] == 4
    with pytest.raises(PlanError, match=r"stages.0.sft: cannot switch the adapter off: .*; leave it to auto"):
        run_training(STARTS[start](), objective=Distance("switch_off"), steps=1)


def test_a_second_adapter_that_is_active_is_seen_by_what_it_changes(run_training: Callable[..., Any]) -> None:
    model = fresh_lora()
    model.add_adapter("other", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            torch.nn.init.normal_(parameter)
    model.base_model.set_adapter(["default", "other"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("default" in name)
    facts = run_training(model, objective=Distance(), steps=1).result.facts
    assert facts["reference"] == "cached"
    assert "switching the adapter off changes log-probabilities by" in facts["reference_reason"]


def test_the_cheaper_way_is_taken_where_both_are_right(run_training: Callable[..., Any]) -> None:
    once = run_training(fresh_lora(), random_items(12), Distance(), epochs=1).result.facts
    twice = run_training(fresh_lora(), random_items(12), Distance(), epochs=2).result.facts
    assert (once["reference"], twice["reference"]) == ("switch_off", "cached")
    assert "12 items to run beforehand, 12 with the adapter switched off" in once["reference_reason"]
    assert twice["reference_reason"] == "12 items to run beforehand, 24 with the adapter switched off"


def test_what_evaluations_run_is_counted_as_often_as_they_come(run_training: Callable[..., Any]) -> None:
    # 9 items in 3 steps, and 3 that are held out, at the steps 2 and 3 and before the first.
    evaluate = {"share": 0.25, "every_ratio": 0.5, "at_start": True}
    trained = run_training(fresh_lora(), random_items(12), Distance(), epochs=1, evaluate=evaluate)
    assert trained.steps("evaluated") == [0, 2, 3]
    expected = "12 items to run beforehand, 18 with the adapter switched off"
    assert trained.result.facts["reference_reason"] == expected


def test_the_two_ways_give_the_same_training(run_training: Callable[..., Any]) -> None:
    options = {"epochs": 2, "learning_rate": 1e-2}
    switched, cached = (
        run_training(fresh_lora(0.2), objective=Distance(mode), **options) for mode in ("switch_off", "cached")
    )
    assert switched.values("loss") == cached.values("loss")
    assert switched.values("distance") == pytest.approx(cached.values("distance"), rel=1e-4, abs=1e-6)


def test_only_what_will_be_seen_is_computed_beforehand(run_training: Callable[..., Any]) -> None:
    options = {"batch": {"rows": 2, "accumulation": 2}, "steps": 2, "evaluate": {"share": 0.1}}
    facts = run_training(items=random_items(50), objective=Distance(), **options).result.facts
    assert facts["reference_sequences"] == 2 * 2 * 2 + 5


def test_switching_off_leaves_what_trains_and_the_mode_of_each_module_as_they_are() -> None:
    from tunekit_train.reference import evaluating, switched_off

    model = fresh_lora(0.5).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    model.base_model.model.model.layers[0].eval()
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    with switched_off(model), evaluating(model):
        assert not any(module.training for module in model.modules())
    assert trains == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_dora_in_half_precision_is_switched_off_only_where_it_changes_nothing(tmp_path: Path) -> None:
    from tunekit_train import TrainConfig, train

    model = fresh_lora(use_dora=True).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:  # as a magnitude rounded to half precision differs from the norm of its weights
            parameter.data.mul_(1.01)
    given = bundle(model, BF16), TrainConfig(steps=1), context(tmp_path, precision=BF16)
    facts = train(Distance(), random_items(4), *given).facts
    assert facts["reference"] == "cached"
    assert "switching the adapter off changes log-probabilities" in facts["reference_reason"]


class Stops(Distance):
    """Ctrl-C in the third micro-batch."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.steps += 1
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sums(batch, provided)


@pytest.mark.parametrize("start", ["fresh LoRA", "all weights"])
def test_a_run_that_goes_on_keeps_the_reference_it_began_with(
    start: str, run_training: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"steps": 6, "learning_rate": 1e-2, "folder": tmp_path / "run", "batch": {"rows": 2}}
    with pytest.raises(InterruptedRunError):
        run_training(STARTS[start](), objective=Stops(), **options)
    objective, before = Distance(), STARTS[start]()
    resumed = run_training(STARTS[start](), objective=objective, resume=True, **options)
    assert resumed.steps("step") == [4, 5, 6]
    assert resumed.result.facts["reference"] == ("switch_off" if start == "fresh LoRA" else "cached")
    for item in random_items(12):
        for found in objective.reference_of.get(item.sequences[0].row, []):
            torch.testing.assert_close(found, of_copy(before, item), **EXACT)
    whole = run_training(STARTS[start](), objective=Distance(), **{**options, "folder": tmp_path / "whole"})
    assert resumed.values("distance") == whole.values("distance")[3:]


def test_a_cache_that_is_gone_is_not_made_from_the_trained_model(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"steps": 6, "folder": tmp_path / "run"}
    with pytest.raises(InterruptedRunError):
        run_training(objective=Stops(), **options)
    shutil.rmtree(tmp_path / "run" / "reference")
    with pytest.raises(PlanError, match=r"a checkpoint whose reference log-probabilities are not in .*run"):
        run_training(objective=Distance(), resume=True, **options)


class Counts:
    """Counts the runs of a model without gradient."""

    def __init__(self, model: Any) -> None:
        self.runs = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += not torch.is_grad_enabled()


def test_a_cache_is_found_again_by_the_same_weights_and_items_and_made_again_for_others(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    def passes(seed: int = 0, items: int = 8) -> int:
        model = tiny_llama(seed)
        counts = Counts(model)
        options = {"steps": 2, "folder": tmp_path / "run", "learning_rate": 1e-9}
        run_training(model, random_items(items), Distance(), **options)
        return counts.runs

    assert passes() == 2
    assert passes() == 0
    assert passes(seed=1) == 2
    assert passes(seed=1, items=7) == 2


def test_a_pass_that_was_killed_begins_again(run_training: Callable[..., Any], tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(*_: Any) -> None:
        if counts.runs == 2:
            raise KilledError

    model = tiny_llama()
    counts = Counts(model)
    model.get_input_embeddings().register_forward_hook(kill)
    options = {"epochs": 1, "folder": tmp_path / "run"}
    with pytest.raises(KilledError):
        run_training(model, objective=Distance(), **options)
    assert [path.name for path in (tmp_path / "run").glob("*reference*")] == [".partial-reference"]
    again = tiny_llama()
    counts = Counts(again)
    run_training(again, objective=Distance(), resume=True, **options)
    assert counts.runs == 3
    assert [path.name for path in (tmp_path / "run").glob("*reference*")] == ["reference"]


def test_the_file_holds_float32_for_each_supervised_token(run_training: Callable[..., Any]) -> None:
    items = random_items(6)
    trained = run_training(items=[*items, items[0]], objective=Distance())
    folder = trained.folder / "reference"
    manifest = json.loads((folder / "manifest.json").read_text())
    found = ReferenceFile.find(folder, manifest["fingerprint"])
    assert found is not None
    assert found.sequences == 6
    assert found.rows == Batch(tuple(items)).supervised_tokens
    assert found.read(items[2].sequences[0]).dtype == torch.float32
    assert ReferenceFile.find(folder, "another") is None


def test_a_sequence_that_is_not_in_the_file_is_said_with_its_row(run_training: Callable[..., Any]) -> None:
    folder = run_training(objective=Distance()).folder / "reference"
    found = ReferenceFile.find(folder, json.loads((folder / "manifest.json").read_text())["fingerprint"])
    assert found is not None
    with pytest.raises(DataError, match=r"rows.json, row 3: was not there when the reference log-probabilities"):
        found.read(random_items(3, seed=99)[2].sequences[0])


def streamed(folder: Path, model: Any, mode: str = "auto") -> Any:
    """Train on a stream of documents."""
    from tunekit.values import Examples, Mixing
    from tunekit_train import TrainConfig, train
    from tunekit_train.streaming import StreamedItems
    from tunekit_train.testing import WordEncoder, word_examples

    examples = Examples.of(word_examples(12), "data", Mixing(streaming=True))
    items = StreamedItems(examples, WordEncoder(), lambda rows: iter(rows), 7, "words")
    return train(Distance(mode), items, bundle(model), TrainConfig(steps=2), context(folder))


def test_a_stream_switches_its_adapter_off_or_copies_it(tmp_path: Path) -> None:
    for name, model, way in (("fresh", fresh_lora(), "switch_off"), ("trained", with_lora(tiny_llama()), "copied")):
        (tmp_path / name).mkdir()
        assert streamed(tmp_path / name, model).facts["reference"] == way
    reason = r"stages.0.sft: streams its data, so the reference cannot be computed beforehand, and no adapter was"
    with pytest.raises(PlanError, match=reason):
        streamed(tmp_path, tiny_llama())
    with pytest.raises(PlanError, match="and cached was asked for; stream nothing"):
        streamed(tmp_path, fresh_lora(), "cached")


def test_a_copy_lies_in_memory_as_a_checkpoint_gives_it_back(tmp_path: Path) -> None:
    """Products round by it: a resumed stage would not reach the same bits."""
    model = with_lora(tiny_llama())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.t().contiguous().t()
    copied = Copied.of(model, "asked for")
    copied.save(tmp_path)
    again = live_as_before(tmp_path)
    assert isinstance(again, Copied)
    assert copied.start
    for name, start in copied.start.items():
        assert torch.equal(start, again.start[name])
        assert start.stride() == again.start[name].stride()
