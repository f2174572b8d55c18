"""Stacking: a fresh adapter learns on top of a saved one, and both come back, with tunekit and without."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch

from tunekit.errors import PlanError, TunekitError
from tunekit.testing import PatchSuite, plan_for, run_context, tiny_bundle, tiny_model
from tunekit.testing.observing import logits, train_, trainable
from tunekit_lora import Lora, Stack
from tunekit_lora.stacking import BELOW, stack_problems

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it


def trained(folder, *plugins, seed=0, bundle=None):
    """An adapter that has learnt something, saved into a folder; its logits."""
    context = run_context(Lora(rank=4), *plugins, seed=seed)
    bundle = bundle or tiny_bundle()
    list(context.calls.each("tunekit_patch", bundle=bundle))
    bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
    train_(bundle.model)
    bundle.save(bundle.model, folder)
    return logits(bundle.model)


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    folder = tmp_path_factory.mktemp("below") / "adapter"
    return folder, trained(folder)


@pytest.fixture(scope="module")
def saved(below):
    return below[0]


class TestStack(PatchSuite):
    """The patch adds the adapter into the weights, and to nothing else."""

    changes = frozenset({"parameters", "evaluation", "training", "gradients"})
    plugin = Stack(adapter="made by the fixture")
    companions = (Lora(rank=4),)

    @pytest.fixture(autouse=True)
    def _adapter(self, saved, monkeypatch):
        monkeypatch.setattr(type(self), "plugin", Stack(adapter=saved))

    @pytest.mark.xfail(reason="a copy of the weights would take as much memory as the model", strict=True)
    def test_undoing_restores_every_output_and_parameter(self):
        super().test_undoing_restores_every_output_and_parameter()


def test_the_base_is_the_model_with_the_adapter_and_a_fresh_one_changes_nothing(below):
    folder, said = below
    context, bundle = run_context(Lora(rank=4), Stack(adapter=folder)), tiny_bundle()
    ((_, report),) = context.calls.each("tunekit_patch", bundle=bundle)
    torch.testing.assert_close(logits(bundle.model), said, atol=1e-5, rtol=0)
    assert report.details["layers"] == 14
    model = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context).model
    torch.testing.assert_close(logits(model), said, atol=1e-5, rtol=0)
    assert all("lora_" in name for name in trainable(model))


def test_what_is_saved_holds_what_it_stands_on_and_loads_without_tunekit(saved, tmp_path):
    said = trained(tmp_path / "top", Stack(adapter=saved), seed=1)
    base = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "top" / BELOW)).merge_and_unload()
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "top"))
    torch.testing.assert_close(logits(again), said, atol=1e-5, rtol=0)


def test_a_third_adapter_stands_on_the_second_and_the_first(saved, tmp_path):
    trained(tmp_path / "second", Stack(adapter=saved), seed=1)
    said = trained(tmp_path / "third", Stack(adapter=tmp_path / "second"), seed=2)
    bundle = tiny_bundle(saved_adapter=tmp_path / "third")
    context = run_context(Lora(rank=4), Stack(adapter=tmp_path / "third" / BELOW))
    list(context.calls.each("tunekit_patch", bundle=bundle))
    opened = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context).model
    assert torch.equal(logits(opened), said)


def test_another_adapter_below_is_refused_when_it_is_opened(saved, tmp_path):
    trained(tmp_path / "top", Stack(adapter=saved), seed=1)
    trained(tmp_path / "other", seed=5)
    trained(tmp_path / "alone")
    for top, stack, message in (
        ("top", tmp_path / "other", "was trained on top of another adapter than"),
        ("alone", saved, "was trained on the model alone; leave stack out"),
    ):
        context, bundle = run_context(Lora(rank=4), Stack(adapter=stack)), tiny_bundle(saved_adapter=tmp_path / top)
        list(context.calls.each("tunekit_patch", bundle=bundle))
        with pytest.raises(TunekitError, match=message):
            context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
    bundle = tiny_bundle(saved_adapter=tmp_path / "top")
    with pytest.raises(
        TunekitError, match=r"another adapter, and use\.stack adds none; set use\.stack\.adapter: .*/below"
    ):
        run_context(Lora()).calls.own("tunekit_attach_adapter", bundle=bundle, context=run_context(Lora()))


def test_an_adapter_that_does_not_fit_the_model_is_refused(saved, tmp_path):
    config = json.loads((saved / "adapter_config.json").read_text())
    shutil.copytree(saved, tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(TunekitError, match="does not fit the model"):
        run_context(Lora(), Stack(adapter=tmp_path / "other")).calls.own("tunekit_patch", bundle=tiny_bundle())
    context = run_context(Lora(rank=4))
    fresh = context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
    fresh.save(fresh.model, tmp_path / "fresh")
    with pytest.raises(TunekitError, match="changes no weight of the model; name an adapter that was trained"):
        run_context(Lora(), Stack(adapter=tmp_path / "fresh")).calls.own("tunekit_patch", bundle=tiny_bundle())


def test_what_cannot_be_stacked_on_is_refused_at_plan_time(saved, tmp_path):
    bnb = pytest.importorskip("tunekit_bnb").Bnb
    with pytest.raises(PlanError, match=r"stack .* does not work with bnb .*, which provides 'quantization'"):
        plan_for(bnb(), Lora(), Stack(adapter=saved))
    (problem,) = stack_problems(tmp_path, plan_for(Lora(), Stack(adapter=tmp_path)))
    assert str(problem).startswith(f"use.stack.adapter: {tmp_path} holds no LoRA adapter in PEFT's format")
