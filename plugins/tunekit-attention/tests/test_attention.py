"""The choice of an attention kernel: what is chosen and why, what is refused, and that what is named computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import (
    PatchSuite,
    default_plugin,
    fake_machine,
    plan_for,
    run_context,
    save_tiny_model,
    tiny_bundle,
)
from tunekit.values import Accelerator, LoadRequest, Plan, Precision
from tunekit_attention import Attention, choosing
from tunekit_attention.choosing import choose, with_implementation
from tunekit_attention.model import refuse_unsuited, told
from tunekit_lora import Lora
from tunekit_sft import Sft
from tunekit_train import Batch, Provided, TokenLogProbs, attentions
from tunekit_train.forward import Forward, Strategy, choose_strategy, prepared
from tunekit_train.testing import CrossEntropy, bundle, family_model, random_items

CPU = Precision("cpu", "bfloat16", "bfloat16", "float32", "a test")
HALF = Precision("cuda", "bfloat16", "bfloat16", "float32", "a test")
FULL = Precision("cuda", "float32", "float32", "float32", "a test")


class TestEager(PatchSuite):
    plugin = Attention(kind="eager")
    changes = frozenset({"training", "evaluation", "gradients"})


class TestSdpa(PatchSuite):
    plugin = Attention(kind="sdpa")
    changes = frozenset()


def card(name: str, *capability: int) -> Accelerator:
    return Accelerator("cuda", "nvidia", name, 80 << 30, capability)  # type: ignore[arg-type]


HOPPER, AMPERE, TURING = card("H100", 9, 0), card("A100", 8, 0), card("T4", 7, 5)


def planned(
    attention: Attention, precision: Precision = HALF, accelerator: Any = AMPERE, padding: str = "auto"
) -> Plan:
    machine = fake_machine(*([accelerator] if precision.device == "cuda" else []))
    return plan_for(attention, Sft(batch={"padding": padding}), machine=machine, precision=precision)


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that these distributions are installed, and no others."""

    def pretend(*names: str) -> None:
        monkeypatch.setattr(choosing, "is_installed", lambda name: name in names)

    return pretend


@pytest.mark.parametrize(
    ("precision", "accelerator", "padding", "installed", "name", "reason"),
    [
        (CPU, None, "auto", ["flash-attn"], "sdpa", "since FlashAttention runs on CUDA, and this is a cpu"),
        (FULL, AMPERE, "auto", ["flash-attn"], "sdpa", "computes in half precision, and this run in float32"),
        (HALF, TURING, "always", ["flash-attn"], "sdpa", "flash2 needs compute capability 8.0, and T4 has 7.5"),
        (HALF, AMPERE, "auto", ["flash-attn", "flash-attn-3"], "sdpa", "batches have no padding"),
        (HALF, AMPERE, "always", ["flash-attn", "flash-attn-3"], "flash_attention_2", "leaves the padding out"),
        (HALF, AMPERE, "always", [], "sdpa", "flash-attn is not installed"),
        (HALF, HOPPER, "auto", ["flash-attn", "flash-attn-3"], "flash_attention_3", "fastest on a Hopper card"),
        (HALF, HOPPER, "auto", ["flash-attn"], "sdpa", "batches have no padding"),
        (HALF, HOPPER, "always", ["flash-attn"], "flash_attention_2", "leaves the padding out"),
    ],
)
def test_auto_chooses_by_hardware_dtype_and_padding_and_says_why(
    precision: Precision, accelerator: Any, padding: str, installed: list[str], name: str, reason: str, have: Any
) -> None:
    have(*installed)
    choice = choose(Attention().config, planned(Attention(), precision, accelerator, padding))
    assert (choice.implementation or choice.kind) == name
    assert reason in choice.reason


def problems(attention: Attention, **options: Any) -> list[str]:
    plan = planned(attention, **options)
    return [str(problem) for problem in attention.tunekit_check(plan=plan, machine=plan.machine)]


@pytest.mark.parametrize(
    ("kind", "options", "installed", "message"),
    [
        ("flex", {"precision": CPU}, [], "is flex, and FlexAttention has no backward on a CPU; use auto"),
        ("flash2", {"precision": CPU}, ["flash-attn"], "is flash2, but FlashAttention runs on CUDA, and this is a cpu"),
        ("flash2", {"precision": FULL}, ["flash-attn"], "in float32; set use.precision.compute to bf16"),
        ("flash2", {}, [], "flash-attn is not installed; `pip install flash-attn --no-build-isolation`, or use auto"),
        ("flash2", {"accelerator": TURING}, ["flash-attn"], "needs compute capability 8.0, and T4 has 7.5"),
        ("flash3", {"accelerator": AMPERE}, ["flash-attn-3"], "needs compute capability 9.0, and A100 has 8.0"),
        (
            "flash3",
            {"accelerator": card("B200", 10, 0)},
            ["flash-attn-3"],
            "for Hopper cards, and this is B200",
        ),
        ("flash3", {"accelerator": HOPPER}, [], "flash-attn-3 is not installed; `build flash-attn-3 from the folder"),
        ("kernel", {}, [], "kernels is not installed; `pip install kernels`"),
        ("kernel", {}, ["kernels"], "kernels-community/flash-attn2, which comes from the hub, and HF_HUB_OFFLINE"),
    ],
)
def test_a_kernel_that_cannot_work_is_refused_with_what_to_do(
    kind: Any, options: Any, installed: list[str], message: str, have: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(*installed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert any(message in problem for problem in problems(Attention(kind=kind), **options))


@pytest.mark.parametrize(
    ("kind", "options", "installed"),
    [
        ("auto", {"precision": CPU}, []),
        ("eager", {"precision": CPU}, []),
        ("sdpa", {}, []),
        ("flex", {}, []),
        ("flash2", {}, ["flash-attn"]),
        ("flash3", {"accelerator": HOPPER}, ["flash-attn-3"]),
        ("kernel", {}, ["kernels"]),
    ],
)
def test_a_kernel_that_can_work_is_planned(
    kind: Any, options: Any, installed: list[str], have: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(*installed)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not problems(Attention(kind=kind), **options)


@pytest.mark.parametrize(
    ("options", "implementation"),
    [
        ({"kind": "flash2"}, "flash_attention_2"),
        ({"kind": "flash3"}, "flash_attention_3"),
        ({"kind": "flex"}, "flex_attention"),
        ({"kind": "sdpa"}, "sdpa"),
        ({"kind": "kernel"}, "kernels-community/flash-attn2"),
        ({"kind": "kernel", "kernel": "some/kernel"}, "some/kernel"),
        ({"kind": "auto"}, None),
    ],
)
def test_the_model_is_loaded_with_what_was_chosen(options: Any, implementation: str | None, have: Any) -> None:
    have()
    attention, request = Attention(**options), LoadRequest("tiny", HALF)
    loaded = attention.tunekit_before_load(request=request, plan=planned(attention))
    assert loaded.arguments.get("attn_implementation") == implementation


def test_another_plugin_that_asks_for_another_attention_is_an_error() -> None:
    request = LoadRequest("tiny", HALF).with_arguments(attn_implementation="eager")
    with pytest.raises(TunekitError, match=r"use\.attention is flex, but another plugin asks for eager"):
        with_implementation(request, choose(Attention(kind="flex").config, planned(Attention(kind="flex"))))


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("gemma2", "sdpa", "is sdpa, but sdpa knows no soft caps, and Gemma2ForCausalLM caps its scores"),
        ("gpt_oss", "sdpa", "is sdpa, but the code of GptOssForCausalLM has no sdpa"),
        ("gpt_oss", "flash2", "is flash2, but the code of GptOssForCausalLM has no flash_attention_2"),
        ("llama", "flex", "FlexAttention has no dropout, and LlamaForCausalLM drops 0.1 of its scores"),
    ],
)
def test_a_model_that_does_not_know_the_kernel_is_refused_in_the_plan(family: str, kind: Any, message: str) -> None:
    model = family_model(family)
    if kind == "flex":
        model.config.attention_dropout = 0.1
    with pytest.raises(PlanError, match=message):
        refuse_unsuited(model, choose(Attention(kind=kind).config, planned(Attention(kind=kind))), training=True)


@pytest.mark.parametrize(
    ("family", "installed", "padding", "said"),
    [
        ("llama", [], "auto", "sdpa, batches have no padding, and torch's own kernel for sequences of any length runs"),
        ("gpt_oss", [], "auto", "eager, batches have no padding"),
        ("llama", ["flash-attn"], "always", "flash_attention_2, batches are padded"),
        ("gpt_oss", ["flash-attn"], "always", "eager, since the code of GptOssForCausalLM has no flash_attention_2"),
    ],
)
def test_the_plan_names_what_the_model_will_compute_with(
    family: str, installed: list[str], padding: str, said: str, have: Any
) -> None:
    have(*installed)
    attention = Attention()
    model, plan = family_model(family), planned(attention, HALF, AMPERE, padding)
    choice = choose(attention.config, plan)
    refuse_unsuited(model, choice, training=True)  # what nobody named is not refused
    note = told(model, choice)
    assert note.startswith(said)
    assert ("GptOssForCausalLM has no" in note) == (family == "gpt_oss")
    request = attention.tunekit_before_load(request=LoadRequest("tiny", HALF), plan=plan)
    config = type(model.config)()
    for change in request.configure:
        change(config)
    named = note.partition(",")[0]
    assert config._attn_implementation == (named if named.startswith("flash") else None)
    assert "attn_implementation" not in request.arguments


def test_a_preferred_attention_reaches_the_model_that_is_loaded(folder: str, tmp_path: Any) -> None:
    """With one that runs here in place of FlashAttention."""

    def prefer_eager(config: Any) -> None:
        config._attn_implementation = "eager"

    loader = default_plugin("tunekit_load_model")
    request = LoadRequest(folder, CPU).configured(prefer_eager)
    model = loader.tunekit_load_model(request=request, context=run_context(loader, folder=tmp_path)).model  # type: ignore[attr-defined]
    assert model.config._attn_implementation == "eager"


def loss_and_gradients(model: Any, batch: Batch, strategy: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    chosen = Strategy(strategy, "a test")  # type: ignore[arg-type]
    with prepared(model, chosen, autocast=False):
        forward = Forward(model.train(), batch, chosen.lay_out(batch))
        total = CrossEntropy().sums(batch, Provided({TokenLogProbs(): TokenLogProbs().provide(forward)})).loss
        model.zero_grad()
        total.backward()
    return total.detach(), {name: each.grad.clone() for name, each in model.named_parameters()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-4, atol=2e-6)
    for name, gradient in left[1].items():
        message = partial("{} {}".format, name)
        torch.testing.assert_close(gradient, right[1][name], rtol=1e-4, atol=2e-6, msg=message)


@pytest.fixture
def batch() -> Batch:
    return Batch(tuple(random_items(4, shortest=1, longest=20)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_written_out_scores_train_without_any_fused_kernel_to_the_same_gradients(
    family: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, made = loss_and_gradients(family_model(family), batch, "padded"), bundle(family_model(family))
    Attention(kind="eager").tunekit_patch(bundle=made)
    assert choose_strategy(made.model, "auto", 0, "stages.0.sft").share_prompts
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    for strategy in ("segments", "padded"):
        assert_same(loss_and_gradients(made.model, batch, strategy), expected)
    ids = torch.arange(3, 12)[None].repeat(2, 1)
    ids[0, :4] = 0
    made.model.eval().generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_mask_made_from_restarting_positions_keeps_sequences_apart(
    family: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FlexAttention relies on, shown with the one implementation of the kind that has a backward on a CPU."""
    model = family_model(family)
    expected = loss_and_gradients(model, batch, "padded")
    model.set_attn_implementation("eager")
    monkeypatch.setattr(attentions, "NATIVE", attentions.NATIVE | {"eager"})
    strategy = choose_strategy(model, "auto", 0, "stages.0.sft")
    assert (strategy.name, strategy.share_prompts) == ("segments", False)
    assert strategy.sharing_reason == "eager cannot attend to a prompt that lies elsewhere"
    seen = []
    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_pre_hook(lambda *_: seen.append(model.config._attn_implementation))
    assert_same(loss_and_gradients(model, batch, "segments"), expected)
    assert set(seen) == {"eager"}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flex", "flash2", "flash3"])
def test_a_kernel_of_an_accelerator_gives_the_gradients_of_written_out_scores(kind: Any, batch: Batch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    package = choosing.PACKAGES.get(kind, ("torch", ""))[0]
    if not choosing.is_installed(package):
        pytest.skip(f"{package} is not installed")
    model = family_model("llama").to("cuda", torch.bfloat16)
    batch_loss = {}
    for implementation in ("eager", choosing.IMPLEMENTATIONS[kind]):
        model.set_attn_implementation(implementation)
        strategy = Strategy("segments", "a test")
        with prepared(model, strategy, autocast=False):
            layout = strategy.lay_out(batch).to(torch.device("cuda"))
            forward = Forward(model, batch, layout)
            batch_loss[implementation] = TokenLogProbs().provide(forward).log_probs.sum()
            model.zero_grad()
            batch_loss[implementation].backward()
    ours, expected = batch_loss.values()
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("attention") / "model"))


ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(8)]


def test_a_run_with_written_out_scores_learns_what_one_with_fused_kernels_learns(folder: str, tmp_path: Any) -> None:
    def losses(kind: Any) -> list[float]:
        use = [Attention(kind=kind), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32")]
        stages = [Sft(epochs=2, learning_rate=5e-3, evaluate={"share": 0.25})]
        pipeline = tk.Pipeline(model=folder, data=ROWS, use=use, stages=stages)
        plan = pipeline.plan()
        assert plan.estimate is not None
        assert any(note.startswith("attention: ") for note in plan.estimate.notes), plan.estimate.notes
        run = pipeline.run(tmp_path / kind)
        assert f"attention: {'eager' if kind == 'eager' else 'sdpa'}" in (run.folder / "reports.json").read_text()
        return [line["loss"] for line in run.metrics if line["kind"] == "step"]

    assert losses("eager") == pytest.approx(losses("auto"), rel=1e-4)


def test_an_attention_that_the_loader_was_told_as_well_is_refused(folder: str) -> None:
    use = {"attention": {"kind": "eager"}, "transformers": {"attention": "sdpa"}, "lora": {}}
    with pytest.raises(PlanError, match=r"use.transformers.attention: is chosen, and so is use.attention"):
        tk.Pipeline(model=folder, data=ROWS, use=use, stages=[{"sft": {}}]).plan()


def test_a_kernel_named_for_another_kind_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="kernel means nothing with kind: auto"):
        Attention(kernel="some/kernel")


def test_undoing_gives_the_model_its_own_attention_back() -> None:
    made = tiny_bundle()
    report = Attention(kind="eager").tunekit_patch(bundle=made)
    assert made.model.config._attn_implementation == "tunekit_eager"
    assert report.undo is not None
    report.undo()
    assert made.model.config._attn_implementation == "sdpa"
