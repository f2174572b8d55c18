"""bitsandbytes: what is quantised and how well, that it keeps its numbers, and that the estimate is right."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import bitsandbytes
import pydantic
import pytest
import torch

from tunekit.calls import Calls
from tunekit.errors import PlanError, TunekitError
from tunekit.recipe import Recipe
from tunekit.testing import fake_machine, run_context
from tunekit.values import Context, Estimate, EstimateRequest, LoadRequest, Machine, Plan, PlannedPlugin, Precision
from tunekit_bnb import DEVICES, Bnb
from tunekit_lora import Lora

FP32 = Precision("cpu", "float32", "float32", "float32", "a test")
MIXED = Precision("cpu", "bfloat16", "bfloat16", "float32", "a test")
MACHINE = Machine("Linux", "3.11", "a test", 2, 2**34)
QUERY = "model.layers.0.self_attn.q_proj"


def on(device):
    precision = Precision(device, "float32", "float32", "float32", "a test")
    return Plan(Recipe("somebody/some-model"), fake_machine(), precision, (), (), ())


def estimated(plugin, skeleton, precision=FP32):
    total = sum(p.numel() for p in skeleton.parameters())
    size = {"float32": 4, "bfloat16": 2}[precision.weights]
    request = EstimateRequest(SimpleNamespace(), LoadRequest("tiny", precision))
    start = Estimate(total, total, {"weights": total * size}, skeleton=skeleton.to(getattr(torch, precision.weights)))
    return plugin.tunekit_estimate(request=request, estimate=start)


def with_lora(bundle, tmp_path):
    """A LoRA whose factors are both random, so that every gradient is some number."""
    lora = Lora(rank=4)
    calls = Calls([PlannedPlugin("lora", lora, "d", "0", "named", "use.lora")])
    context = Context(calls, MACHINE, bundle.precision, tmp_path, 0, lambda event: None)
    model = lora.tunekit_attach_adapter(bundle=bundle, context=context).model
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def loss_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


def gradients(model, ids):
    model.train().zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def unpacked(layer):
    """float32[out in] of a quantised layer."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return layer.weight.CB.float() * layer.weight.SCB[:, None] / 127


def test_importing_the_plugin_imports_no_torch():
    code = "import tunekit_bnb, sys; assert not {'torch', 'transformers', 'bitsandbytes'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_devices_are_those_that_the_library_names():
    assert bitsandbytes.supported_torch_devices == DEVICES


def test_a_device_without_kernels_is_refused():
    (problem,) = Bnb().tunekit_check(plan=on("xla"), machine=MACHINE)
    assert str(problem) == (
        "use.bnb: bitsandbytes has no kernels for xla; leave bnb out, or run on one of cpu, cuda, hpu, mps, npu, xpu"
    )
    assert not list(Bnb().tunekit_check(plan=on("cpu"), machine=MACHINE))


def test_full_fine_tuning_is_refused_because_an_adapter_is_required():
    assert Bnb.requires == {"adapter"}
    assert "adapter" in Lora.provides


@pytest.mark.parametrize(
    "options", [{"bits": 8, "kind": "fp4"}, {"bits": 8, "double_quantization": False}, {"bits": 4, "threshold": 5.0}]
)
def test_an_option_that_would_change_nothing_is_refused(options):
    with pytest.raises(pydantic.ValidationError, match=f"{list(options)[1]} means nothing with {options['bits']} bits"):
        Bnb(**options)


@pytest.mark.parametrize("options", [{"bits": 3}, {"kind": "int4"}, {"bits": 8, "threshold": -1}, {"bit": 4}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=list(options)[-1]):
        Bnb(**options)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_linear_layer_but_the_head_is_quantised(load, bits):
    model = load(Bnb(bits=bits)).model
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    linear = {name: type(m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear.pop("lm_head") is torch.nn.Linear
    assert len(linear) == 14
    assert set(linear.values()) == {kind}


@pytest.mark.parametrize("skip", ["q_proj", "model.layers.1", QUERY])
def test_skipped_layers_keep_their_weights_and_so_does_the_head(load, dense, skip):
    model = load(Bnb(skip=[skip])).model
    kept = {name for name, m in model.named_modules() if type(m) is torch.nn.Linear}
    assert kept == {name for name, m in dense.named_modules() if isinstance(m, torch.nn.Linear) and skip in name} | {
        "lm_head"
    }


def test_a_name_to_skip_that_the_model_does_not_have_is_an_error_in_plan_and_run(load, skeleton):
    plugin = Bnb(skip=["q_prj"])
    message = "use.bnb.skip: the model has no linear layer named 'q_prj'; did you mean 'q_proj'?"
    with pytest.raises(PlanError) as planned:
        estimated(plugin, skeleton)
    with pytest.raises(PlanError) as run:
        plugin.tunekit_patch(bundle=load(plugin))
    assert message in str(planned.value)
    assert message in str(run.value)


def test_a_loader_that_quantised_nothing_is_an_error(load, dense):
    bundle = load(Bnb()).with_model(dense)
    with pytest.raises(TunekitError, match=r"use\.bnb: the loaded model has no quantised layer"):
        Bnb().tunekit_patch(bundle=bundle)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_products_run_in_the_compute_dtype_of_the_policy(load, compute):
    model = load(Bnb(), Precision("cpu", "float32", compute, "float32", "a test")).model
    assert model.get_submodule(QUERY).compute_dtype == getattr(torch, compute)


def relative_error(model, dense):
    layers = [name for name, m in dense.model.named_modules() if isinstance(m, torch.nn.Linear)]
    pairs = [(dense.model.get_submodule(n).weight, unpacked(model.model.get_submodule(n))) for n in layers]
    return (sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs)).sqrt().item()


def test_the_error_of_each_kind_on_gaussian_weights_is_what_its_values_allow(load, dense):
    nf4, fp4, int8 = (relative_error(load(Bnb(**o)).model, dense) for o in ({}, {"kind": "fp4"}, {"bits": 8}))
    # Of a normal distribution in blocks of 64: measured 0.092 and 0.122. In 8 bits rows reach about three deviations.
    assert nf4 == pytest.approx(0.092, abs=0.004)
    assert fp4 == pytest.approx(0.122, abs=0.005)
    assert int8 < 0.01


def test_double_quantisation_changes_the_scales_a_little_and_stores_them_in_less(load):
    layers = [load(Bnb(double_quantization=d)).model.get_submodule(QUERY) for d in (True, False)]
    double, single = (layer.weight.quant_state for layer in layers)
    assert (double.nested, single.nested) == (True, False)
    assert double.absmax.element_size() == 1
    assert single.absmax.element_size() == 4
    difference = (unpacked(layers[0]) - unpacked(layers[1])).norm() / unpacked(layers[1]).norm()
    assert 0 < difference < 0.02


def test_a_threshold_is_refused_where_nothing_is_compared_with_it():
    asked = Bnb(bits=8, threshold=3.0)
    (problem,) = asked.tunekit_check(plan=on("cpu"), machine=MACHINE)
    assert str(problem) == (
        "use.bnb.threshold: means nothing on cpu: what goes into a layer is not rounded there; leave it out, or run on "
        "another device"
    )
    assert not list(asked.tunekit_check(plan=on("cuda"), machine=MACHINE))
    assert not list(Bnb(bits=8).tunekit_check(plan=on("cpu"), machine=MACHINE))


@pytest.mark.parametrize("precision", [FP32, MIXED])
def test_in_8_bits_a_cpu_multiplies_by_the_dense_weight_in_training_and_evaluation(load, precision):
    """Outliers or not; bitsandbytes alone does so in training only, with the same numbers; on a GPU, in neither."""
    bundle, plain = (load(Bnb(bits=8), precision) for _ in range(2))
    report = Bnb(bits=8).tunekit_patch(bundle=bundle)
    assert report.summary == "14 linear layers in 8 bits, dense for each product, whose inputs are not rounded"
    layer, own = (each.model.get_submodule(QUERY) for each in (bundle, plain))
    inputs = 3 * torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).to(getattr(torch, precision.weights))
    expected = torch.nn.functional.linear(inputs, unpacked(own).to(inputs.dtype))
    with torch.no_grad():
        for said in (layer.train()(inputs), layer.eval()(inputs), own.train()(inputs)):
            torch.testing.assert_close(said, expected, rtol=1e-5 if precision is FP32 else 2e-2, atol=1e-5)
        assert torch.equal(layer.train()(inputs), layer.eval()(inputs))
        assert (own.eval()(inputs) - expected).norm() > 1e-3 * expected.norm(), "bitsandbytes rounds no inputs any more"
    report.undo()
    assert "forward" not in vars(layer)
    gpu = replace(load(Bnb(bits=8)), precision=replace(FP32, device="cuda"))
    assert Bnb(bits=8).tunekit_patch(bundle=gpu).summary == "14 linear layers in 8 bits"
    assert "forward" not in vars(gpu.model.get_submodule(QUERY))


def test_the_threshold_lets_outliers_through_in_full_precision(load, dense):
    outlier = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    outlier[:, 5] = 50.0
    expected = dense.get_submodule(QUERY)(outlier)
    layers = [load(Bnb(bits=8, threshold=t)).model.eval().get_submodule(QUERY) for t in (6.0, 0.0)]
    with torch.no_grad():
        mixed, plain = ((layer(outlier) - expected).norm() / expected.norm() for layer in layers)
    assert mixed < plain / 3


@pytest.mark.parametrize("precision", [FP32, MIXED])
@pytest.mark.parametrize("options", [{}, {"kind": "fp4"}, {"double_quantization": False}, {"bits": 8}])
def test_training_goes_on_with_the_same_numbers_after_an_evaluation(load, ids, tmp_path, options, precision):
    bundle = load(Bnb(**options), precision)
    report = Bnb(**options).tunekit_patch(bundle=bundle)
    model = with_lora(bundle, tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast):
        before = gradients(model, ids)
        evaluated = loss_of(model, ids)
        after = gradients(model, ids)
        assert before.keys() == after.keys()
        assert len(before) == 28
        assert all(torch.equal(before[name], after[name]) and before[name].abs().max() > 0 for name in before)
        assert loss_of(model, ids) == evaluated
    report.undo()


@pytest.mark.skipif(
    not bitsandbytes.nn.modules.has_avx512bf16(), reason="bitsandbytes repacks on CPUs with AVX512-BF16 only"
)
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered")
def test_without_the_patch_gradients_are_wrong_after_an_evaluation(load, ids, tmp_path):
    """What the patch is for: should bitsandbytes mend it, this test says that the patch can go."""
    model = with_lora(load(Bnb()), tmp_path)
    before = gradients(model, ids)
    loss_of(model, ids)
    after = gradients(model, ids)
    query = next(name for name in before if "0.self_attn.q_proj.lora_A" in name)
    assert (after[query] - before[query]).norm() > 0.5 * before[query].norm()


def test_generation_between_steps_leaves_weights_and_saved_adapter_right(load, ids, tmp_path):
    bundle = load(Bnb())
    Bnb().tunekit_patch(bundle=bundle)
    weights = unpacked(bundle.model.get_submodule(QUERY))
    model = with_lora(bundle, tmp_path)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        losses.append(loss_of(model, ids))
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
        gradients(model, ids)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    layer = model.get_submodule(f"base_model.model.{QUERY}").base_layer
    assert torch.equal(unpacked(layer), weights)
    model.save_pretrained(tmp_path / "adapter")
    again = load(Bnb())
    Bnb().tunekit_patch(bundle=again)
    context = run_context(Lora(), folder=tmp_path)
    saved = replace(again, saved_adapter=tmp_path / "adapter")
    opened = context.calls.own("tunekit_attach_adapter", bundle=saved, context=context)
    assert loss_of(opened.model, ids) == loss_of(model, ids)


def test_the_patch_says_what_it_did_and_can_be_undone(load):
    bundle = load(Bnb())
    layers = [m for m in bundle.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    before = [layer.support_avx512bf16_for_cpu for layer in layers]
    report = Bnb().tunekit_patch(bundle=bundle)
    assert report.summary == "14 linear layers in nf4, never repacked"
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    report.undo()
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == before


def test_eight_bits_do_not_log_a_line_for_every_call(load, ids, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("bitsandbytes.autograd._functions"), "filters", [])
    bundle = replace(load(Bnb(bits=8)), precision=replace(FP32, device="cuda"))  # on a CPU it is not asked any more
    with caplog.at_level(logging.WARNING):
        report = Bnb(bits=8).tunekit_patch(bundle=bundle)
        loss_of(bundle.model, ids)
        assert "MatMul8bitLt" not in caplog.text
        report.undo()
        loss_of(bundle.model, ids)
        assert "MatMul8bitLt" in caplog.text


def measured(model):
    """Bytes of all weights with their scales; tables that layers share are left out."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            state = layer.weight.quant_state
            scales = [state.absmax, state.state2.absmax] if state.nested else [state.absmax]
            total += sum(part.numel() * part.element_size() for part in scales)
        elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            total += layer.weight.SCB.numel() * layer.weight.SCB.element_size()
    return total


@pytest.mark.parametrize("precision", [FP32, MIXED])
@pytest.mark.parametrize(
    "options", [{}, {"double_quantization": False}, {"kind": "fp4"}, {"bits": 8}, {"skip": ["q_proj"]}]
)
def test_the_estimate_counts_the_bytes_that_loading_takes(load, skeleton, options, precision):
    estimate = estimated(Bnb(**options), skeleton, precision)
    # A block of 64 weights that is not full still has a scale.
    assert estimate.memory["weights"] == pytest.approx(measured(load(Bnb(**options), precision).model), rel=1e-3)


def test_the_estimate_says_that_quantised_layers_do_not_train(skeleton):
    estimate = estimated(Bnb(), skeleton)
    linear = sum(m.weight.numel() for m in skeleton.model.modules() if isinstance(m, torch.nn.Linear))
    assert estimate.trainable == estimate.parameters - linear


def test_the_quantization_tells_what_it_allows():
    values = [Bnb(**o).tunekit_quantize(request=LoadRequest("m", FP32)) for o in ({}, {"double_quantization": False})]
    assert [value.method for value in values] == ["nf4", "nf4"]
    assert [value.bits for value in values] == pytest.approx([4.127, 4.5], abs=1e-3)
    assert all(value.adapter_only and value.merge == "dequantize" for value in values)
    int8 = Bnb(bits=8).tunekit_quantize(request=LoadRequest("m", FP32))
    assert (int8.method, int8.bits, int8.merge) == ("llm.int8", 8.0, "dequantize")
