"""What is done so that a micro-batch fits in memory: chosen from the estimate, and the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunekit.errors import PlanError, TunekitError
from tunekit.hooks import hookimpl
from tunekit.recipe import Recipe
from tunekit.testing import fake_machine
from tunekit.testing.options import shows
from tunekit.values import Accelerator, Account, Estimate, Machine, Mixing, Plan
from tunekit_train import (
    Batch,
    Items,
    Layout,
    Need,
    Provided,
    SequenceValues,
    Stage,
    TokenLogProbs,
    TrainConfig,
    chunked,
    train,
)
from tunekit_train.checks import problems
from tunekit_train.config import ComputeConfig
from tunekit_train.estimate import estimate_stage
from tunekit_train.fitting import MEANS, SMALL, Fitting, as_options_say, checkpointed, choose, offloaded
from tunekit_train.forward import Forward, Strategy, prepared
from tunekit_train.segments import FAMILIES
from tunekit_train.shapes import Activations
from tunekit_train.testing import (
    FP32,
    CrossEntropy,
    bundle,
    context,
    family_model,
    random_items,
    tiny_llama,
    with_lora,
)

GIB = 1 << 30
CPU = Machine("Linux", "3.11", "cpu", 2, 8 * GIB)
GPU = Machine("Linux", "3.11", "cpu", 2, 99 * GIB, accelerators=(Accelerator("cuda", "nvidia", "a", 8 * GIB),))
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
"""fp32: the same sums in another order; the tiny models' gradients are of the order of 1e-2."""


def computed(
    model: Any, strategy: str, chunk: bool = False, within: Callable[[Any], Any] = nullcontext
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and all gradients of a batch."""
    batch, chosen = Batch(tuple(random_items(4))), Strategy(strategy, "test")  # type: ignore[arg-type]
    model.zero_grad()
    with prepared(model, chosen, autocast=False):
        need = TokenLogProbs()
        with within(model):
            forward = Forward(model, batch, chosen.lay_out(batch), (need,), chunked=chunk)
            total = CrossEntropy().sums(batch, Provided({need: need.provide(forward)})).loss
            total.backward()
    return total.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left[0], right[0], **TOLERANCE)
    assert left[1].keys() == right[1].keys()
    for name in left[1]:
        torch.testing.assert_close(left[1][name], right[1][name], **TOLERANCE, msg=partial("{} {}".format, name))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions at a time."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 7 * 128)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_chunked_head_gives_the_same_loss_and_gradients(family: str) -> None:
    model = family_model(family)
    assert_same(computed(model, "segments", chunk=True), computed(model, "segments"))
    model.get_output_embeddings().requires_grad_(False)  # its gradient is then worked out at once
    assert_same(computed(model, "padded", chunk=True), computed(model, "padded"))


@pytest.mark.usefixtures("small_chunks")
def test_a_chunked_head_never_makes_all_logits_at_once() -> None:
    def largest(chunk: bool, head: bool) -> int:
        model = with_lora(tiny_llama())
        model.get_output_embeddings().requires_grad_(head)
        seen: list[int] = []
        model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(out.shape[-2]))
        computed(model, "segments", chunk)
        return max(seen)

    assert largest(False, False) > 14
    assert largest(True, False) == largest(True, True) == 7


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_computed_again_give_the_same_loss_and_gradients(family: str) -> None:
    model = family_model(family).train()
    expected = computed(model, "segments")
    counts = [0]
    layers = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    name, inner = next((name, each) for name, each in layers[0].named_modules() if "norm" in name or "ln" in name)
    inner.register_forward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    assert_same(computed(model, "segments", within=partial(checkpointed, wanted=True)), expected)
    assert counts[0] == 2, f"{name} runs again in the backward"
    assert not model.is_activation_checkpointing


def test_a_model_that_cannot_compute_layers_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(TunekitError, match="LlamaForCausalLM cannot compute its layers again in the backward"):
        checkpointed(model, wanted=True).__enter__()


def test_layers_computed_again_drop_out_the_same() -> None:
    def losses(again: bool) -> Any:
        torch.manual_seed(3)
        model = with_lora(tiny_llama(), dropout=0.4).train()
        return computed(model, "segments", within=partial(checkpointed, wanted=again))

    plain, again = losses(False), losses(True)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(value, again[1][name]) for name, value in plain[1].items())


def test_what_waits_elsewhere_for_the_backward_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(tiny_llama())
    expected, copies, made = computed(model, "segments"), [0], torch.empty

    def counting(*sizes: Any, **options: Any) -> torch.Tensor:
        copies[0] += options.get("pin_memory") is False
        return made(*sizes, **options)

    monkeypatch.setattr("tunekit_train.fitting.SMALL", 0)
    monkeypatch.setattr(torch, "empty", counting)
    found = computed(model, "segments", within=partial(offloaded, pin=False))
    assert copies[0] > 20
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(value, expected[1][name]) for name, value in found[1].items())


def test_weights_and_what_is_small_stay_where_they_are() -> None:
    layer = torch.nn.Linear(64, 64)
    with offloaded(layer, pin=False):
        out = layer(torch.ones(2, 64, requires_grad=True)).exp()
    saved = out.grad_fn._saved_result  # type: ignore[union-attr]
    assert out.numel() < SMALL
    assert saved.data_ptr() == out.data_ptr()


def peak(fitting: Fitting) -> int:
    """12 GiB, of which a chunked head saves 1, checkpointing 5 and offloading 2."""
    return (12 - fitting.chunked_head - 5 * fitting.checkpointing - 2 * fitting.offload) * GIB


def test_nothing_is_done_that_the_estimate_does_not_ask_for() -> None:
    fits = choose(ComputeConfig(), CPU, lambda fitting: 7 * GIB)
    assert not any(getattr(fits, name) for name in MEANS)
    assert fits.reasons["checkpointing"] == "the estimate is 7 GiB of 8 GiB without it"


@pytest.mark.parametrize(
    ("options", "machine", "expected"),
    [
        ({}, CPU, ["chunked_head", "checkpointing"]),
        ({"chunked_head": "never"}, CPU, ["checkpointing"]),
        ({"checkpointing": "never"}, CPU, ["chunked_head"]),
        ({"checkpointing": "never"}, GPU, ["chunked_head", "offload"]),
        ({"checkpointing": "always"}, GPU, ["checkpointing"]),
    ],
)
def test_means_are_taken_up_one_after_the_other_until_it_fits(
    options: dict[str, str], machine: Machine, expected: list[str]
) -> None:
    fitting = choose(ComputeConfig(**options), machine, peak)
    assert [name for name in MEANS if getattr(fitting, name)] == expected
    for name, how in options.items():
        assert fitting.reasons[name] == f"compute.{name} is {how}"
    assert set(fitting.reasons) == set(MEANS)


@shows("compute.offload")
def test_offloading_from_a_processor_is_no_help_and_refused_where_it_is_asked_for() -> None:
    reason = "the model runs in the memory that it would be put in"
    assert choose(ComputeConfig(), CPU, lambda fitting: 99 * GIB).reasons["offload"] == reason
    config = TrainConfig(compute={"offload": "always"})
    plugin = SimpleNamespace(config=config, kinds=frozenset({"text"}))
    stage = SimpleNamespace(plugin=SimpleNamespace(plugin=plugin), mixing=Mixing(), key="stages.0.sft")
    stages: Any = (stage,)
    plan = Plan(Recipe("tiny"), fake_machine(), FP32, (), (), stages)
    (problem,) = problems(plugin, plan, CPU)
    assert str(problem).startswith("stages.0.sft.compute.offload: is always, and this machine has no accelerator")
    assert not list(problems(plugin, plan, GPU))


def test_the_estimate_says_what_each_means_saves() -> None:
    parts = Activations(saved=1000, layers=10, passed=5, logits=500, chunked=80, workspace=100, growth=2.0)
    assert parts.bytes(Fitting()) == 2 * 1600
    assert parts.bytes(Fitting(chunked_head=True)) == 2 * 1180
    assert parts.bytes(Fitting(checkpointing=True)) == 2 * (100 + 50 + 600)
    assert parts.bytes(Fitting(offload=True)) == 2 * (100 + 600)


def asked(plugin: Any, stage: Any, items: Any, machine: Machine, *launchers: Any) -> Any:
    """What an estimate is asked of one stage of a plan."""
    plugins = tuple(SimpleNamespace(plugin=each, stage=None) for each in (plugin, *launchers))
    recipe = SimpleNamespace(seed=0)
    plan = SimpleNamespace(stages=(stage,), precision=FP32, recipe=recipe, machine=machine, plugins=plugins)
    account = Account()
    account.source("rows.json").rows = len(items)
    return SimpleNamespace(plan=plan, samples={0: Items(items, account)}, rows={0: len(items)})


@dataclass(frozen=True)
class Entropies(Need[torch.Tensor]):
    """Of all predictions at once."""

    def logits_at(self, layout: Layout) -> torch.Tensor:
        return layout.positions

    def provide(self, forward: Forward) -> torch.Tensor:
        log_probs = forward.logits(forward.layout.positions).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


class Confident(CrossEntropy):
    needs = (TokenLogProbs(), Entropies())


class Valued(CrossEntropy):
    needs = (SequenceValues(),)


class Trains(Stage[TrainConfig]):
    def __init__(self, objective: Any, config: TrainConfig) -> None:
        super().__init__(config)
        self.made = objective

    def objective(self) -> Any:
        return self.made


class Apart:
    """Starts processes in which no head runs in parts."""

    @hookimpl
    def tunekit_launch(self) -> None:
        raise AssertionError

    def obstacle(self, trick: str) -> str | None:
        return "its weights are in parts" if trick == "chunked_head" else None


def estimated(objective: Any, memory: int, *launchers: Any, **compute: str) -> Any:
    """The activations of a batch whose logits are large, and what is done about them."""
    config = TrainConfig(compute=compute)
    plugin = Trains(objective, config)
    stage = SimpleNamespace(index=0, name="sft", key="stages.0.sft", plugin=SimpleNamespace(plugin=plugin))
    machine = Machine("Linux", "3.11", "cpu", 2, memory)
    request = asked(plugin, stage, random_items(8, shortest=100, longest=100), machine, *launchers)
    skeleton = tiny_llama(vocab_size=30_000).to("meta")
    found = estimate_stage(plugin, config, request, Estimate(skeleton=skeleton))
    return found.memory["activations"], found.choices["stages.0.sft"]["fitting"]


def test_the_estimate_counts_the_logits_of_a_need_that_takes_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit_train.shapes.CHUNK_LOGITS", 30_000)
    whole, _ = estimated(CrossEntropy(), 99 * GIB)
    parts, small = estimated(CrossEntropy(), 1 << 20, checkpointing="never")
    still, fitting = estimated(Confident(), 1 << 20, checkpointing="never")
    assert (small["chunked_head"], fitting["chunked_head"]) == (True, False)
    assert parts < 0.7 * whole
    assert still == whole
    assert fitting["reasons"]["chunked_head"] == "Entropies takes the logits of all positions at once"
    without, _ = estimated(Valued(), 99 * GIB)
    assert without < parts


@pytest.mark.parametrize(
    ("objective", "launchers", "reason"),
    [
        (Confident(), (), "Entropies takes the logits of all positions at once"),
        (Valued(), (), "the objective announces no logits"),
        (CrossEntropy(), (Apart(),), "its weights are in parts"),
    ],
)
def test_a_head_in_parts_that_cannot_be_is_refused_where_it_is_asked_for(
    objective: Any, launchers: Any, reason: str, run_training: Callable[..., Any]
) -> None:
    told = f"stages.0.sft.compute.chunked_head: is always, and that does not hold here: {reason}; leave it to auto"
    with pytest.raises(PlanError, match=told):
        estimated(objective, 99 * GIB, *launchers, chunked_head="always")
    assert estimated(objective, 1 << 20, *launchers)[1]["reasons"]["chunked_head"] == reason
    if not launchers:
        with pytest.raises(PlanError, match=told):
            run_training(objective=objective, compute={"chunked_head": "always"})


def test_what_was_planned_for_another_objective_is_not_recorded_as_done(tmp_path: Path) -> None:
    planned = {"fitting": Fitting(chunked_head=True, reasons={"chunked_head": "the estimate is large"}).state()}
    items, config = random_items(4), TrainConfig(steps=1)
    facts = train(Confident(), items, bundle(tiny_llama()), config, context(tmp_path, choices=planned)).facts
    assert not facts["chunked_head"]
    assert facts["chunked_head_reason"] == "Entropies takes the logits of all positions at once"


@pytest.mark.parametrize("memory", [8 * GIB, 40 << 20])
def test_what_the_estimate_chose_reaches_the_training(memory: int, tmp_path: Path) -> None:
    plugin, items = object(), random_items(12, shortest=100, longest=120)
    stage = SimpleNamespace(index=0, name="sft", key="stages.0.sft", plugin=SimpleNamespace(plugin=plugin))
    machine = Machine("Linux", "3.11", "cpu", 2, memory)
    request = asked(plugin, stage, items, machine)
    model = tiny_llama(num_hidden_layers=8, intermediate_size=512)
    skeleton = copy.deepcopy(model).to("meta")
    estimate = estimate_stage(plugin, TrainConfig(), request, Estimate(skeleton=skeleton, memory={"process": 35 << 20}))
    surroundings = context(tmp_path, choices=estimate.choices["stages.0.sft"])
    facts = train(CrossEntropy(), items, bundle(model), TrainConfig(steps=1), surroundings).facts
    assert facts["checkpointing"] == (memory < GIB)
    assert facts["checkpointing_reason"].startswith("the estimate is 0.")
    assert not facts["offload"]


@shows("compute.chunked_head", "compute.checkpointing")
def test_means_change_no_number_of_a_training(run_training: Callable[..., Any]) -> None:
    def losses(**compute: str) -> Any:
        trained = run_training(with_lora(tiny_llama()), steps=3, learning_rate=1e-2, compute=compute)
        assert [trained.result.facts[name] for name in compute] == [how == "always" for how in compute.values()]
        return trained.values("loss")

    plain = losses(chunked_head="never", checkpointing="never", offload="never")
    assert losses(chunked_head="always", checkpointing="always") == pytest.approx(plain, rel=1e-5)


def test_without_an_estimate_nothing_is_done_unasked() -> None:
    fitting = as_options_say(ComputeConfig(checkpointing="always"))
    assert (fitting.checkpointing, fitting.chunked_head) == (True, False)
    assert fitting.reasons["chunked_head"] == "there is no estimate to ask for it"
