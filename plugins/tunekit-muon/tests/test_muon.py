"""Muon: torch's own steps for both halves, and the right half for each weight."""

from __future__ import annotations

import pytest
import torch

from tunekit.errors import PlanError
from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings, Precision
from tunekit_lora import Lora
from tunekit_muon import Muon
from tunekit_train.testing import bundle, check_resumes, family_model, tiny_llama, with_lora

PURE = Precision("cpu", "bfloat16", "bfloat16", "bfloat16", "a test")


def made(model, folder, weight_decay=0.0, **options):
    plugin = Muon(**options)
    return plugin.tunekit_optimizer(
        bundle=bundle(model),
        named_parameters=[(name, each) for name, each in model.named_parameters() if each.requires_grad],
        settings=OptimizerSettings(1e-2, weight_decay),
        context=stage_context(plugin, folder=folder),
    )


def take_steps_(model, *optimizers, steps=4):
    for step in range(steps):
        ids = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def names_of(model, optimizer, muon):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in optimizer.param_groups if ("momentum" in group) == muon]
    return {names[id(parameter)] for group in groups for parameter in group["params"]}


def test_it_takes_the_steps_of_torchs_muon_and_torchs_adamw(tmp_path):
    ours, theirs = (tiny_llama(tie_word_embeddings=False) for _ in range(2))
    hidden = [each for name, each in theirs.named_parameters() if each.ndim == 2 and "layers." in name]
    ends = [theirs.model.embed_tokens.weight, theirs.lm_head.weight]
    vectors = [each for each in theirs.parameters() if each.ndim == 1]
    groups = [{"params": ends}, {"params": vectors, "weight_decay": 0.0}]
    reference = (
        torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.1, fused=True),
    )
    take_steps_(ours, made(ours, tmp_path, 0.1, others_share=0.5))
    take_steps_(theirs, *reference)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(name), atol=1e-6, rtol=1e-5, msg=name)


def test_hidden_matrices_are_muons_whatever_the_model_is(tmp_path):
    llama = tiny_llama()
    others = names_of(llama, made(llama, tmp_path), muon=False)
    assert "model.embed_tokens.weight" in others
    assert all(llama.get_parameter(name).ndim == 1 for name in others - {"model.embed_tokens.weight"})
    gpt2 = family_model("gpt2")
    assert "transformer.h.0.attn.c_attn.weight" in names_of(gpt2, made(gpt2, tmp_path), muon=True)
    adapted = with_lora(tiny_llama())
    assert all("lora_" in name for name in names_of(adapted, made(adapted, tmp_path), muon=True))
    assert not names_of(adapted, made(adapted, tmp_path), muon=False)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.5},
        {"nesterov": False},
        {"iterations": 2},
        {"adjust": "original"},
        {"others_share": 0.1},
        {"beta1": 0.5},
        {"beta2": 0.9},
        {"eps": 1e-2},
    ],
    ids=str,
)
def test_each_option_changes_the_steps(tmp_path, options):
    after = []
    for chosen in ({}, options):
        model = tiny_llama()
        take_steps_(model, made(model, tmp_path, **chosen), steps=3)
        after.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert not torch.allclose(*after, atol=1e-6, rtol=0)


def test_lengths_that_go_by_outputs_and_inputs_are_refused_where_those_are_stored_the_other_way_round(tmp_path):
    with pytest.raises(PlanError, match=r"use.muon.adjust: is original, .*c_attn is stored as \[in out\]"):
        made(family_model("gpt2"), tmp_path, adjust="original")


def test_a_momentum_that_torch_would_spoil_is_refused():
    weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    spoilt = torch.optim.Muon([weight], lr=1e-2, nesterov=False)
    weight.grad = torch.full((4, 4), 8.0, dtype=torch.bfloat16)
    spoilt.step()
    momentum = spoilt.state[weight]["momentum_buffer"]
    assert not torch.allclose(momentum, 0.05 * weight.grad)  # what a decay of 0.95 leaves of the first gradient
    plan = plan_for(Muon(nesterov=False), precision=PURE)
    (problem,) = Muon(nesterov=False).tunekit_check(plan, plan.machine)
    assert problem.where == "use.muon.nesterov"
    assert not Muon().tunekit_check(plan, plan.machine)


@pytest.mark.parametrize("adapter", [(), (Lora(rank=4),)], ids=["full", "lora"])
def test_the_estimate_counts_the_bytes_of_the_state(tmp_path, adapter):
    model = tiny_bundle().model
    if adapter:
        model = with_lora(model)
    optimizer = made(model, tmp_path)
    take_steps_(model, optimizer, steps=1)
    tensors = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert estimate_for(*adapter, Muon()).memory["optimiser"] == sum(each.numel() * 4 for each in tensors)


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(Muon(), tmp_path)
