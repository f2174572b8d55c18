"""Liger's kernels: refused where they cannot run, and handed what each layer computes with, on this model alone."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic
import pytest
import torch

from tunekit.errors import PlanError
from tunekit.testing import PatchSuite, fake_machine, plan_for
from tunekit.values import Accelerator, ModelBundle, Precision
from tunekit_liger import Liger, checks
from tunekit_liger.layers import find
from tunekit_lora import Lora
from tunekit_sft import Sft
from tunekit_train.testing import FP32, bundle, family_model

WITH_MLP = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "granite"]
NORMS_ALONE = ["phi3", "mixtral"]
CUDA = Precision("cuda", "bfloat16", "bfloat16", "float32", "a test")
GPU = Accelerator("cuda", "nvidia", "H100", 80 << 30, (9, 0))


def plain_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, casting: str, in_place: bool
) -> torch.Tensor:
    """The formula of Liger's norm, with its two places to round."""
    assert not in_place
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if casting == "gemma":
        return (scaled * (offset + weight.float())).to(x.dtype)
    return scaled.to(x.dtype) * (offset + weight)


class Kernels(ModuleType):
    """Plain versions of the kernels, and how often each was called."""

    def __init__(self) -> None:
        super().__init__("liger_kernel.transformers.functional")
        self.calls = {"norm": 0, "swiglu": 0, "geglu": 0}

    def liger_rms_norm(self, *given: Any) -> torch.Tensor:
        self.calls["norm"] += 1
        return plain_rms_norm(*given)

    def liger_swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        self.calls["swiglu"] += 1
        return gate * torch.sigmoid(gate) * up

    def liger_geglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        self.calls["geglu"] += 1
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        return 0.5 * gate * (1 + torch.tanh(inner)) * up


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Stand in for the library, whose kernels a CPU cannot run."""
    made, above, top = Kernels(), ModuleType("liger_kernel.transformers"), ModuleType("liger_kernel")
    above.functional = made  # type: ignore[attr-defined]
    for module in (top, above, made):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("tunekit_liger.checks.runs_on", lambda device: True)
    return made


class TestLiger(PatchSuite):
    plugin = Liger()
    # Another order of the same products: the plain versions here round otherwise.
    changes = frozenset({"training", "evaluation", "gradients"})


def observed(model: Any) -> dict[str, torch.Tensor]:
    """Logits and gradients in training mode."""
    ids = torch.arange(3, 43).view(2, 20)
    out = model.train()(input_ids=ids, labels=ids)
    model.zero_grad()
    out.loss.backward()
    return {"logits": out.logits.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("family", [*WITH_MLP, *NORMS_ALONE])
def test_each_layer_hands_its_kernel_what_it_computes_with(family: str, kernels: Kernels) -> None:
    model, mlp = family_model(family), family in WITH_MLP
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 0.8, 0.2)  # or a wrong offset or weight could not be seen
    expected, made = observed(model), bundle(model)
    report = Liger(mlp=mlp).tunekit_patch(bundle=made)
    found = observed(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)
    norms = sum(type(module).__name__.endswith("RMSNorm") for module in model.modules())
    assert kernels.calls["norm"] == norms
    assert kernels.calls["swiglu"] + kernels.calls["geglu"] == (2 if mlp else 0)
    assert f"{norms} norms" in report.summary
    assert ("2 MLPs" in report.summary) == mlp


@pytest.mark.parametrize("family", ["llama", "gemma", "olmo2"])
def test_it_rounds_where_the_layer_rounds(family: str) -> None:
    model = family_model(family).to(torch.bfloat16)
    norm = next(module for module in model.modules() if type(module).__name__.endswith("RMSNorm"))
    torch.nn.init.normal_(norm.weight, 0.8, 0.2)
    x = torch.randn(64, norm.weight.shape[0], generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = norm(x)
    Liger(mlp=False).tunekit_patch(bundle=bundle(model))
    assert torch.equal(norm(x), expected)


def test_what_is_switched_off_stays_the_models_own(kernels: Kernels) -> None:
    model = family_model("llama")
    Liger(rms_norm=False).tunekit_patch(bundle=bundle(model))
    observed(model)
    assert kernels.calls == {"norm": 0, "swiglu": 2, "geglu": 0}


def test_adapters_inside_an_mlp_take_part(kernels: Kernels, tmp_path: Any) -> None:
    from tunekit.testing import run_context

    made = ModelBundle(family_model("llama"), None, "tiny", FP32)
    Liger().tunekit_patch(bundle=made)
    context = run_context(Lora(rank=4), folder=tmp_path)
    model = context.calls.own("tunekit_attach_adapter", bundle=made, context=context).model
    ids = torch.arange(3, 23)[None]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert kernels.calls["swiglu"] == 2
    factors = [p for name, p in model.named_parameters() if "gate_proj.lora_B" in name]
    assert all(p.grad is not None and p.grad.any() for p in factors)


def problems(*installed: str, precision: Precision = CUDA, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(checks, "is_installed", lambda name: name in installed)
    liger = Liger()
    plan = plan_for(liger, Sft(), machine=fake_machine(GPU), precision=precision)
    return [str(problem) for problem in liger.tunekit_check(plan=plan, machine=plan.machine)]


def test_a_machine_that_cannot_run_the_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(precision=FP32, monkeypatch=monkeypatch) == [
        "use.liger: computes by Triton kernels, which need CUDA, and this is a cpu; leave it out"
    ]
    assert problems("triton", monkeypatch=monkeypatch) == [
        "use.liger: needs liger-kernel, which is not installed; `pip install liger-kernel`, or leave liger out"
    ]
    (missing,) = problems("liger-kernel", monkeypatch=monkeypatch)
    assert "needs triton, which is not installed" in missing
    assert not problems("triton", "liger-kernel", monkeypatch=monkeypatch)


def test_a_model_with_other_layers_is_refused() -> None:
    with pytest.raises(PlanError, match=r"use.liger.rms_norm: GPT2LMHeadModel has no layer that its kernel computes"):
        find(family_model("gpt2"), Liger().config)
    with pytest.raises(PlanError, match=r"use.liger.mlp: Phi3ForCausalLM has no layer .* set it to false"):
        Liger().tunekit_patch(bundle=bundle(family_model("phi3")))


def test_classes_of_another_library_are_left_alone() -> None:
    stranger = type("LlamaRMSNorm", (torch.nn.Module,), {})
    model = SimpleNamespace(named_modules=lambda: [("norm", stranger())])
    with pytest.raises(PlanError, match="has no layer that its kernel computes"):
        find(model, Liger().config)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="both off, so nothing would change"):
        Liger(rms_norm=False, mlp=False)


@pytest.mark.gpu
def test_the_kernels_themselves_compute_what_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("liger_kernel")
    model, ids = family_model("llama").to("cuda", torch.bfloat16), torch.arange(3, 43, device="cuda").view(2, 20)
    expected = model(ids).logits
    Liger().tunekit_patch(bundle=bundle(model))
    torch.testing.assert_close(model(ids).logits, expected, rtol=3e-2, atol=3e-2)
