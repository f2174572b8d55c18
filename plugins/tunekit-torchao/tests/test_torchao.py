"""torchao's weights: how near they are, what they weigh, that they cost no more in training, and who may train."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pydantic
import pytest
import torch
from transformers import AutoModelForCausalLM

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import (
    FP32,
    MIXED,
    conversations,
    default_plugin,
    estimate_for,
    fake_machine,
    plan_for,
    run_context,
    tiny_tokenizer,
)
from tunekit.testing.observing import gradients, logits, snapshot, token_ids, trainable
from tunekit.values import Accelerator, LoadRequest
from tunekit_lora import Lora
from tunekit_torchao import Torchao
from tunekit_torchao.checks import as_stored
from tunekit_torchao.weights import rounded_layers
from tunekit_transformers import stored_quantization

QUERY = "model.layers.0.self_attn.q_proj"
ROWS = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
STAGE: dict[str, Any] = {"sft": {"epochs": 1}}
KINDS = ["int8", "int4", "float8"]


def adapted(bundle):
    lora = Lora(rank=4)
    return lora.tunekit_attach_adapter(bundle=bundle, context=run_context(lora, precision=bundle.precision)).model


def planned(model, *plugins, **options):
    return tk.Pipeline(model=str(model), data=ROWS, use=list(plugins), stages=[STAGE], **options).plan()


def weight_error(load, **options):
    """|W' - W| / |W| over all rounded layers."""
    dense, rounded = load().model, load(Torchao(**options)).model
    pairs = [
        (dense.get_submodule(name).weight.detach(), layer.weight.dequantize())
        for name, layer in rounded_layers(rounded).items()
    ]
    error = sum((w - r).square().sum() for w, r in pairs) / sum(w.square().sum() for w, _ in pairs)
    return float(error.sqrt())


def test_the_error_of_each_kind_is_what_its_steps_allow(load):
    """Evenly spaced values miss by step/sqrt(12) on average, and a step is the largest of a group over 127.5 or 7.5.

    The largest of n normal numbers is about 2.07 (32), 2.8 (128) and 3.0 (256) deviations large.
    """
    expected = {"int8": 2.85 / 127.5 / math.sqrt(12), "int4": 2.3 / 7.5 / math.sqrt(12)}
    assert weight_error(load) == pytest.approx(expected["int8"], rel=0.15)
    assert weight_error(load, kind="int4") == pytest.approx(expected["int4"], rel=0.15)
    # Three bits of mantissa: a relative step of 1/8 to 1/16, so 0.0625 to 0.125 over sqrt(12).
    assert 0.0625 / math.sqrt(12) < weight_error(load, kind="float8") < 0.125 / math.sqrt(12)


@pytest.mark.parametrize("kind", ["int8", "int4", "float8"])
def test_smaller_groups_are_nearer_to_the_dense_weights(load, kind):
    assert weight_error(load, kind=kind, group=16) < 0.95 * weight_error(load, kind=kind, group=128)


@pytest.mark.parametrize("skip", ["q_proj", "model.layers.1"])
def test_skipped_layers_keep_their_weights_and_so_does_the_head(load, skip):
    dense = load().model
    kept = {n for n, m in dense.named_modules() if isinstance(m, torch.nn.Linear) and (skip in n or n == "lm_head")}
    rounded = rounded_layers(load(Torchao(skip=[skip])).model)
    assert len(rounded) + len(kept) == 15
    assert not kept & set(rounded)


def test_a_name_to_skip_that_the_model_does_not_have_is_an_error(load):
    message = "use.torchao.skip: the model has no linear layer named 'q_prj'; did you mean 'q_proj'"
    for doing in (lambda: estimate_for(Lora(rank=4), Torchao(skip=["q_prj"])), lambda: load(Torchao(skip=["q_prj"]))):
        with pytest.raises(PlanError) as raised:
            doing()
        assert message in str(raised.value)


@pytest.mark.parametrize("precision", [FP32, MIXED], ids=["fp32", "mixed"])
@pytest.mark.parametrize("options", [{}, {"kind": "int4"}, {"kind": "float8"}, {"group": 32}, {"skip": ["q_proj"]}])
def test_the_estimate_counts_the_bytes_that_loading_takes(load, options, precision):
    plugin = Torchao(**options)
    alone = estimate_for(Lora(rank=4), plugin, precision=precision).memory["weights"]
    adapter = estimate_for(Lora(rank=4), precision=precision).memory["weights"]
    adapter -= estimate_for(precision=precision).memory["weights"]
    stored = snapshot(load(plugin, precision=precision).model)
    buffers = {name for name, _ in load(precision=precision).model.named_buffers()}
    measured = sum(v.numel() * v.element_size() for name, v in stored.items() if name not in buffers)
    assert alone - adapter == pytest.approx(measured, rel=1e-3)


def kept_matrices(model):
    """How many matrices as large as an MLP's the forward of a training step keeps for its backward."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
    assert loss.requires_grad
    return sum(tensor.numel() == 128 * 256 for tensor in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_no_dense_weight_is_kept_from_the_forward_until_the_backward(load, kind):
    """torchao's own layers keep one each, so that a rounded model would take more memory than a dense one."""
    frugal, own = load(Torchao(kind=kind)), load(Torchao(kind=kind))
    for layer in rounded_layers(own.model).values():
        del layer.forward
    assert kept_matrices(adapted(own).train()) >= 4
    assert kept_matrices(adapted(frugal).train()) == 0


def test_gradients_below_a_dynamic_kind_are_wrong(load):
    """Why the plan refuses them: should torchao pass gradients through, this test says that the refusal can go."""
    found = []
    for plugins in ((), (Torchao(),), (Torchao(kind="int8-dynamic"),)):
        model = adapted(load(*plugins))
        generator = torch.Generator().manual_seed(0)
        for parameter in trainable(model).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        gradient = gradients(model)["base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"]
        found.append(gradient.flatten())
    dense, rounded, dynamic = found
    assert torch.cosine_similarity(dense, rounded, dim=0) > 0.99
    assert torch.cosine_similarity(dense, dynamic, dim=0) < 0.5


@pytest.mark.parametrize("kind", ["int8-dynamic", "int4-dynamic"])
def test_dynamic_kinds_are_refused_for_training_and_answer_without_stages(load, folder, kind):
    with pytest.raises(PlanError, match=rf"use\.torchao\.kind: is {kind}, which rounds what goes into each layer"):
        planned(folder, Torchao(kind=kind), Lora(rank=4))
    assert plan_for(Torchao(kind=kind)).plugins
    dense, rounded = logits(load().model), logits(load(Torchao(kind=kind)).model)
    assert 0 < float((rounded - dense).abs().mean() / dense.abs().mean()) < 0.3


def test_products_in_float8_are_refused_where_there_are_none():
    def problems(device, *capabilities):
        machine = fake_machine(*(Accelerator("cuda", "nvidia", "a card", 1 << 34, each) for each in capabilities))
        plugin = Torchao(kind="float8-dynamic")
        plan = plan_for(plugin, machine=machine, precision=replace(FP32, device=device))
        return [str(each) for each in plugin.tunekit_check(plan=plan, machine=machine)]

    assert problems("cuda", (9, 0)) == []
    (older,) = problems("cuda", (8, 0))
    assert older.startswith("use.torchao.kind: is float8-dynamic, and no accelerator here multiplies in float8")
    for beside in ((), ((9, 0),)):
        (message,) = problems("cpu", *beside)
        assert message.endswith("in float8, and the run computes on cpu; take float8, which stores weights in it and "
                                "multiplies in more")  # fmt: skip


def test_a_group_that_does_not_divide_a_row_is_refused():
    with pytest.raises(PlanError, match=r"use\.torchao\.group: is 48, which does not divide the 128 inputs of"):
        estimate_for(Lora(rank=4), Torchao(kind="int4", group=48))


@pytest.mark.parametrize("options", [{"kind": "int3"}, {"group": 4}, {"kind": "int8-dynamic", "group": 32}])
def test_options_outside_their_range_or_without_effect_are_refused(options):
    with pytest.raises(pydantic.ValidationError):
        Torchao(**options)


def test_it_does_not_change_how_the_process_compiles(load):
    import torch._inductor.config as inductor

    before = inductor.get_config_copy()
    load(Torchao())
    assert inductor.get_config_copy() == before


@pytest.fixture(scope="module")
def stored(load, tmp_path_factory):
    """A checkpoint that torchao has rounded: int4 in groups of 64, without the query projections."""
    place = tmp_path_factory.mktemp("stored")
    bundle = load(Torchao(kind="int4", group=64, skip=["q_proj"]))
    bundle.model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(str(place))
    return place, logits(bundle.model)


def test_a_checkpoint_that_is_rounded_already_says_the_same_once_loaded(load, stored):
    place, said = stored
    bundle = load(Torchao(kind="int4"), model=place)
    assert bool((logits(bundle.model) == said).all())
    assert len(rounded_layers(bundle.model)) == 12


def test_a_checkpoint_that_is_rounded_already_is_planned_right_or_refused(stored):
    place, _ = stored
    plan = planned(place, Torchao(kind="int4"), Lora(rank=4))
    assert plan.estimate is not None
    for use, message in (
        ((Lora(rank=4),), r"model: the weights of .* are stored quantised by torchao; add `torchao: \{\}` to use"),
        ((Torchao(), Lora(rank=4)), r"use.torchao.kind: is int8, but the weights are .* as int4; write kind: int4"),
        ((Torchao(kind="int4", group=32), Lora(rank=4)), r"use.torchao.group: was decided when these weights"),
    ):
        with pytest.raises(PlanError, match=message):
            planned(place, *use)


def test_the_estimate_knows_the_groups_and_layers_of_a_rounded_checkpoint(stored):
    place, _ = stored
    known = as_stored(Torchao(kind="int4").config, stored_quantization(LoadRequest(str(place), FP32)))
    assert (known.columns, known.skip) == (64, ("q_proj",))


def test_a_kind_of_torchao_that_is_not_known_here_is_refused(stored, tmp_path):
    place, _ = stored
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"]["quant_type"]["default"]["_type"] = "Int4WeightOnlyConfig"
    (tmp_path / "config.json").write_text(json.dumps(config))
    plugin = Torchao()
    problems = plugin.tunekit_check(plan=plan_for(plugin, Lora(), model=str(tmp_path)), machine=fake_machine())
    assert "stored by torchao as Int4WeightOnlyConfig, which this plugin does not know" in str(next(iter(problems)))


def test_the_quantization_tells_what_it_allows():
    for options, bits in (({}, 8.0), ({"kind": "int4"}, 9.25), ({"kind": "int8", "group": 32}, 9.25)):
        said = Torchao(**options).tunekit_quantize(request=LoadRequest("m", FP32))
        assert (said.adapter_only, said.merge, said.bits) == (True, "dequantize", bits)


def exported(folder, place, **options):
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    use = [Torchao(kind="int4"), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32")]
    pipeline = tk.Pipeline(
        model=str(folder), data=ROWS, use=use, stages=[stage], export=[{"torchao": {"tolerance": 0.9, **options}}]
    )
    run = pipeline.run(place)
    return run.folder / "exports" / "torchao", json.loads((run.folder / "exports/torchao/export.json").read_text())


def test_an_adapter_over_rounded_weights_is_exported_rounded_anew_and_keeps_what_it_learnt(folder, tmp_path):
    """Merged into int4 itself it would be lost: int8 of the merged weights keeps it, over either base."""
    place, kept = exported(folder, tmp_path / "run", skip=["q_proj"], group=32)
    found = kept["verification"]
    assert found["kl"] < 0.01 * found["base_kl"]
    layers = rounded_layers(AutoModelForCausalLM.from_pretrained(place))
    assert len(layers) == 12
    assert {tuple(layer.weight.block_size) for layer in layers.values()} == {(1, 32)}


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """An adapter that has learnt something over int4."""
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    use = [Torchao(kind="int4"), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32")]
    return tk.Pipeline(model=str(folder), data=ROWS, use=use, stages=[stage]).run(tmp_path_factory.mktemp("run") / "r")


@pytest.mark.parametrize(
    ("kind", "lost", "stored"),
    [
        ("float8", 0.005, "Float8Tensor"),
        ("int8-dynamic", 0.001, "Int8Tensor"),
        ("int4-dynamic", 0.05, "IntxUnpackedToInt8Tensor"),
    ],
)
def test_an_export_of_each_kind_keeps_what_was_learnt(run, kind, lost, stored, tmp_path):
    """What is `lost`, as a share of the divergence from the base: measured 0.0004, 0.00005 and 0.008."""
    found = run.export("torchao", kind=kind, folder=str(tmp_path / kind), tolerance=0.9)
    assert 0 < found.verification.kl < lost * found.verification.base_kl
    layers = rounded_layers(AutoModelForCausalLM.from_pretrained(found.folder))
    assert len(layers) == 14
    assert {type(layer.weight).__name__ for layer in layers.values()} == {stored}


def test_an_export_says_what_does_not_fit(folder):
    def planned_with(**options):
        use, stage = [Lora(rank=4)], STAGE
        export = [{"torchao": options}]
        return tk.Pipeline(model=str(folder), data=ROWS, use=use, stages=[stage], export=export).plan(estimate=False)

    with pytest.raises(PlanError, match=r"export\.0\.torchao\.kind: is float8-dynamic, which needs an accelerator"):
        planned_with(kind="float8-dynamic")
    with pytest.raises(PlanError, match=r"export\.0\.torchao\.base: is original, and the base is not quantised"):
        planned_with(base="original")
