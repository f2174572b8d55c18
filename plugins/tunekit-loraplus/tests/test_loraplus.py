"""LoRA+: the rates of PEFT's own implementation, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from tunekit.errors import PlanError
from tunekit.testing import estimate_for, plan_for, stage_context
from tunekit.values import OptimizerSettings
from tunekit_lora import Lora
from tunekit_loraplus import Loraplus
from tunekit_train.testing import bundle, check_resumes, tiny_llama, with_lora


def made(model, folder, weight_decay=0.0, **options):
    plugin = Loraplus(**options)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return plugin.tunekit_optimizer(
        bundle=bundle(model),
        named_parameters=named,
        settings=OptimizerSettings(1e-3, weight_decay),
        context=stage_context(plugin, folder=folder),
    )


def rates(model, optimizer):
    """Learning rate and weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens"]], ids=str)
def test_each_factor_has_the_rate_that_peft_gives_it(tmp_path, targets):
    model = with_lora(tiny_llama(tie_word_embeddings=False), target_modules=targets)
    ours = made(model, tmp_path, 0.1, ratio=8, embedding_rate=1e-5)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_lr_embedding=1e-5, loraplus_weight_decay=0.1
    )
    assert rates(model, ours) == rates(model, theirs)
    assert len({rate for rate, _ in rates(model, ours).values()}) == (2 if targets == "all-linear" else 3)


def test_what_belongs_to_no_factor_has_the_rate_of_the_stage_and_vectors_do_not_decay(tmp_path):
    model = with_lora(tiny_llama(), use_dora=True, target_modules=["q_proj"], modules_to_save=["norm"])
    for name, (rate, decay) in rates(model, made(model, tmp_path, 0.1)).items():
        assert rate == (16e-3 if "lora_B" in name else 1e-3), name
        assert decay == (0.1 if "lora_A" in name or "lora_B" in name else 0.0), name


@pytest.mark.parametrize(
    "options", [{"ratio": 2}, {"embedding_rate": 1e-2}, {"beta1": 0.5}, {"beta2": 0.9}, {"eps": 1e-2}], ids=str
)
def test_each_option_changes_the_steps(tmp_path, options):
    after = []
    for chosen in ({}, options):
        model = with_lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj", "embed_tokens"])
        optimizer = made(model, tmp_path, **chosen)
        for step in range(3):
            ids = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(step))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        after.append(torch.cat([each.detach().flatten() for each in model.parameters() if each.requires_grad]))
    assert not torch.allclose(*after, atol=1e-7, rtol=0)


def test_the_estimate_is_that_of_adamw():
    estimate = estimate_for(Lora(rank=4), Loraplus())
    assert estimate.memory["optimiser"] == 2 * 4 * estimate.trainable > 0


def test_without_an_adapter_it_is_refused_and_the_plan_says_what_is_missing():
    with pytest.raises(PlanError, match=r"loraplus needs 'adapter.lora'.*add .*lora"):
        plan_for(Loraplus())


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(Loraplus(ratio=4), tmp_path, lambda: with_lora(tiny_llama(), dropout=0.1))
