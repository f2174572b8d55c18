"""APOLLO: the authors' steps, plain AdamW beside them, and a projection that takes no memory."""

from __future__ import annotations

import pydantic
import pytest
import torch
from apollo_torch import APOLLOAdamW
from apollo_torch.random_projector import GradientProjector

from tunekit.errors import PlanError
from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings
from tunekit_apollo import Apollo
from tunekit_apollo.optimizer import ApolloAdamW, projection
from tunekit_lora import Lora
from tunekit_train.testing import check_resumes


def made(bundle, folder, seed=0, settings=None, **options):
    apollo = Apollo(**{"rank": 8, **options})
    return apollo.tunekit_optimizer(
        bundle=bundle,
        named_parameters=list(bundle.model.named_parameters()),
        settings=settings or OptimizerSettings(1e-3),
        context=stage_context(apollo, folder=folder, seed=seed),
    )


def train_(model, optimizer, steps):
    for step in range(steps):
        ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def problem_(shape):
    """A weight, and a gradient for each of 12 steps, some suddenly larger."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) * (5 if step in (4, 9) else 1) for step in range(12)]
    return torch.nn.Parameter(torch.randn(shape, generator=generator)), gradients


def follow(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("interval", "limit"), [(1, 1.01), (5, 1.01), (100, None)])
def test_sketched_weights_take_the_steps_of_the_authors_code(monkeypatch, shape, granularity, interval, limit):
    def as_here(self, weights, rank, type, seed):
        """Their projection, drawn as it is here: any draw is as good."""
        self.draws = getattr(self, "draws", -1) + 1
        drawn = projection(weights, rank, f"w {self.draws}")
        return drawn.T if type == "left" else drawn

    monkeypatch.setattr(GradientProjector, "get_orthogonal_matrix", as_here)
    (ours, gradients), (theirs, _) = problem_(shape), problem_(shape)
    options = {"rank": 6, "update_interval": interval, "scale": 4.0, "granularity": granularity, "growth_limit": limit}
    mine = ApolloAdamW([{"params": [ours], **options}], lr=0.01, seeds={ours: "w"})
    group = {"params": [theirs], "rank": 6, "update_proj_gap": interval, "scale": 4.0, "proj": "random",
             "scale_type": granularity, "proj_type": "std"}  # fmt: skip
    reference = APOLLOAdamW([group], lr=0.01, eps=1e-8, disable_nl=limit is None)
    start = ours.detach().clone()
    expected = follow(reference, theirs, gradients)
    torch.testing.assert_close(follow(mine, ours, gradients), expected, atol=1e-5, rtol=1e-5)
    assert (expected - start).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(24, 40), (7,)])
def test_all_other_parameters_take_the_steps_of_adamw(shape):
    (ours, gradients), (theirs, _) = problem_(shape), problem_(shape)
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    mine, reference = ApolloAdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    torch.testing.assert_close(follow(mine, ours, gradients), follow(reference, theirs, gradients))


def test_a_projection_keeps_lengths_on_average_and_depends_on_its_seed_alone():
    gradient = problem_((400, 600))[1][0]
    drawn = projection(gradient, 100, "7 layer 0")
    assert drawn.shape == (100, 400)
    assert torch.equal(drawn, projection(gradient * 2, 100, "7 layer 0"))
    assert not torch.allclose(drawn, projection(gradient, 100, "7 layer 1"))
    ratio = (drawn @ gradient).norm(dim=0) / gradient.norm(dim=0)
    assert abs(ratio.mean() - 1) < 0.02  # 600 columns, each within 1 / sqrt(2 * 100)


def test_another_seed_sketches_otherwise_and_each_weight_has_a_sketch_of_its_own(tmp_path):
    after = []
    for seed in (0, 1):
        bundle = tiny_bundle()
        optimizer = made(bundle, tmp_path, seed=seed)
        train_(bundle.model, optimizer, 2)
        after.append(bundle.model.get_submodule("model.layers.0.self_attn.q_proj").weight)
    assert not torch.equal(*after)
    assert len(set(optimizer.seeds.values())) == len(optimizer.seeds)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 16},
        {"update_interval": 2},
        {"scale": 4.0},
        {"granularity": "tensor"},
        {"growth_limit": None},
        {"targets": ["q_proj"]},
        {"beta1": 0.5},
        {"beta2": 0.9},
        {"eps": 1e-3},
    ],
    ids=str,
)
def test_each_option_changes_the_steps(tmp_path, options):
    name = "model.layers.0.mlp.up_proj" if "targets" in options else "model.layers.0.self_attn.q_proj"
    after = []
    for chosen in ({}, options):
        bundle = tiny_bundle()
        train_(bundle.model, made(bundle, tmp_path, **chosen), 4)
        after.append(bundle.model.get_submodule(name).weight)
    assert not torch.allclose(*after, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["mpl"]}, "use.apollo.targets: no linear layer's name holds 'mpl'; did you mean 'mlp'?"),
        ({"rank": 100}, "use.apollo.rank is 100, but model.layers.0.self_attn.k_proj is 64 x 128; choose 64 or less"),
    ],
)
def test_what_does_not_fit_the_model_is_said_in_plan_and_run(tmp_path, options, message):
    for start in (lambda: made(tiny_bundle(), tmp_path, **options), lambda: estimate_for(Apollo(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


@pytest.mark.parametrize("options", [{"rank": 0}, {"scale": 0}, {"growth_limit": 1.0}, {"granularity": "row"}], ids=str)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Apollo(**options)


@pytest.mark.parametrize("options", [{}, {"targets": ["mlp"]}, {"growth_limit": None, "rank": 1}], ids=str)
def test_the_estimate_counts_the_bytes_of_the_state(tmp_path, options):
    bundle = tiny_bundle()
    optimizer = made(bundle, tmp_path, **options)
    train_(bundle.model, optimizer, 1)
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    estimate = estimate_for(Apollo(**{"rank": 8, **options}))
    assert estimate.memory["optimiser"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert estimate.memory["optimiser"] < 2 * 4 * estimate.trainable


def test_vectors_do_not_decay_and_matrices_do(tmp_path):
    for group in made(tiny_bundle(), tmp_path, settings=OptimizerSettings(1e-2, weight_decay=0.3)).param_groups:
        assert {parameter.ndim for parameter in group["params"]} == ({2} if group["weight_decay"] == 0.3 else {1})


def test_it_is_refused_with_an_adapter_when_the_plan_is_made():
    with pytest.raises(PlanError, match=r"(?s)apollo.*lora|lora.*apollo"):
        plan_for(Lora(), Apollo())


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(Apollo(rank=4, update_interval=2), tmp_path)
