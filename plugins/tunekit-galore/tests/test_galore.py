"""GaLore: the authors' steps, plain AdamW beside them, a state that survives, and an estimate that is right."""

from __future__ import annotations

import warnings

import pydantic
import pytest
import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from tunekit.errors import PlanError
from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings
from tunekit_galore import Galore
from tunekit_galore.choosing import choose_weights
from tunekit_galore.optimizer import GaloreAdamW, leading_vectors
from tunekit_lora import Lora
from tunekit_train.testing import check_resumes

PROJECTIONS = ["std", "reverse_std", "left", "right"]


def made(bundle, folder, settings=None, **options):
    galore = Galore(**{"rank": 8, **options})
    return galore.tunekit_optimizer(
        bundle=bundle,
        named_parameters=list(bundle.model.named_parameters()),
        settings=settings or OptimizerSettings(1e-3),
        context=stage_context(galore, folder=folder),
    )


def train_(model, optimizer, steps, first=0):
    """Train on tokens that differ from step to step, and give the losses."""
    losses = []
    for step in range(first, first + steps):
        ids = torch.randint(3, 500, (4, 48), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def problem_(shape, seed=0):
    """A weight, and a gradient with a well-separated spectrum for each of 12 steps."""
    generator = torch.Generator().manual_seed(seed)
    size = min(shape)
    spectrum = torch.diag(0.7 ** torch.arange(size))
    gradients = [
        torch.randn(shape[0], size, generator=generator) @ spectrum @ torch.randn(size, shape[1], generator=generator)
        for _ in range(12)
    ]
    return torch.nn.Parameter(torch.randn(shape, generator=generator)), gradients


def follow(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("interval", [1, 5, 100])
def test_projected_weights_take_the_steps_of_the_authors_code(monkeypatch, shape, projection, interval):
    original = GaLoreProjector.get_orthogonal_matrix

    def with_steady_signs(self, weights, rank, type):
        """Singular vectors as they are there, with their signs chosen as here: any choice is as good."""
        found, former = original(self, weights, rank, type), self.ortho_matrix
        if former is None:
            return found
        return found * (found * former).sum(0 if type == "left" else 1, keepdim=True).sign()

    monkeypatch.setattr(GaLoreProjector, "get_orthogonal_matrix", with_steady_signs)
    (ours, gradients), (theirs, _) = problem_(shape), problem_(shape)
    mine = GaloreAdamW(
        [{"params": [ours], "rank": 6, "update_interval": interval, "scale": 0.5, "projection": projection}], lr=0.01
    )
    group = {"params": [theirs], "rank": 6, "update_proj_gap": interval, "scale": 0.5, "proj_type": projection}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference = GaLoreAdamW([group], lr=0.01, eps=1e-8)
    start = ours.detach().clone()
    expected = follow(reference, theirs, gradients)
    # Singular vectors in float32 there, from float64 here.
    torch.testing.assert_close(follow(mine, ours, gradients), expected, atol=2e-4, rtol=1e-3)
    assert (expected - start).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(24, 40), (7,)])
def test_all_other_parameters_take_the_steps_of_adamw(shape):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for _ in range(12)]
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    mine, reference = GaloreAdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    torch.testing.assert_close(
        follow(mine, ours, gradients), follow(reference, theirs, gradients), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_new_vectors_keep_the_signs_of_those_they_replace(side):
    gradient = problem_((24, 40))[1][0]
    former = leading_vectors(gradient, 6, side)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    turned = former * (signs if side == "left" else signs[:, None])
    assert torch.equal(leading_vectors(gradient, 6, side, turned), turned)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_subspace_is_that_of_the_singular_vectors(side):
    gradient = problem_((24, 40))[1][0]
    left, _, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    expected = left[:, :6] @ left[:, :6].T if side == "left" else right[:6].T @ right[:6]
    basis = leading_vectors(gradient, 6, side)
    assert basis.shape == ((24, 6) if side == "left" else (6, 40))
    found = basis @ basis.T if side == "left" else basis.T @ basis
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_at_full_rank_and_scale_one_it_moves_as_far_as_adam_in_the_rotated_space():
    weight, gradients = problem_((24, 40))
    before = weight.detach().clone()
    group = {"params": [weight], "rank": 24, "scale": 1.0, "projection": "left", "update_interval": 100}
    after = follow(GaloreAdamW([group], lr=0.01), weight, gradients[:1])
    # The first step of Adam is lr times the sign of each number, here in the rotated space.
    torch.testing.assert_close((after - before).norm(), torch.tensor(0.01 * (24 * 40) ** 0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_state_saved_between_two_choices_of_subspace_continues_bit_identically(tmp_path, projection):
    options = {"update_interval": 4, "projection": projection, "settings": OptimizerSettings(1e-2, weight_decay=0.1)}
    whole = tiny_bundle()
    optimizer = made(whole, tmp_path, **options)
    train_(whole.model, optimizer, 6)
    torch.save({"model": whole.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    expected = train_(whole.model, optimizer, 6, first=6)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = tiny_bundle()
    resumed.model.load_state_dict(saved["model"])
    again = made(resumed, tmp_path, **options)
    again.load_state_dict(saved["optimizer"])
    assert train_(resumed.model, again, 6, first=6) == expected
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_state_is_made_of_tensors_and_plain_numbers(tmp_path):
    bundle = tiny_bundle()
    optimizer = made(bundle, tmp_path)
    train_(bundle.model, optimizer, 1)
    kinds = {type(value) for state in optimizer.state_dict()["state"].values() for value in state.values()}
    assert kinds == {int, torch.Tensor}


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 16},
        {"update_interval": 2},
        {"scale": 1.0},
        {"projection": "reverse_std"},
        {"targets": ["q_proj"]},
        {"beta1": 0.5},
        {"beta2": 0.9},
        {"eps": 1e-3},
    ],
)
def test_each_option_changes_the_steps(tmp_path, options):
    after = []
    for chosen in ({}, options):
        bundle = tiny_bundle()
        train_(bundle.model, made(bundle, tmp_path, **chosen), 4)
        after.append(bundle.model.get_submodule("model.layers.0.self_attn.q_proj").weight)
        if "targets" in options:
            after[-1] = bundle.model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert not torch.allclose(*after, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", 14),
        (["mlp"], 6),
        (["q_proj", "k_proj"], 4),
        (["layers.1"], 7),
        (["self_attn.q_proj"], 2),
        (r"model\.layers\.0\..*proj", 7),
        (["lm_head"], 1),
    ],
)
def test_targets_choose_the_weights_that_are_projected(targets, expected, tmp_path):
    bundle = tiny_bundle()
    assert len(choose_weights(bundle.model, Galore(targets=targets, rank=8).config)) == expected
    (group,) = [group for group in made(bundle, tmp_path, targets=targets).param_groups if group["rank"]]
    assert len(group["params"]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["mpl"]}, "use.galore.targets: no linear layer's name holds 'mpl'; did you mean 'mlp'?"),
        ({"targets": ["xyz"]}, "the model has down_proj, gate_proj, k_proj"),
        ({"targets": "mlp"}, "no linear layer's whole name matches 'mlp'; write [mlp] to name layers"),
        ({"rank": 100}, "use.galore.rank is 100, but model.layers.0.self_attn.k_proj is 64 x 128; choose 64 or less"),
    ],
)
def test_what_does_not_fit_the_model_is_said_in_plan_and_run(tmp_path, options, message):
    for start in (lambda: made(tiny_bundle(), tmp_path, **options), lambda: estimate_for(Galore(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"scale": 0}, {"update_interval": 0}, {"projection": "up"}, {"beta1": 1}]
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Galore(**options)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("targets", ["all-linear", ["mlp"]])
def test_the_estimate_counts_the_bytes_of_the_state(tmp_path, projection, targets):
    bundle = tiny_bundle()
    optimizer = made(bundle, tmp_path, projection=projection, targets=targets)
    train_(bundle.model, optimizer, 1)
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    estimate = estimate_for(Galore(rank=8, projection=projection, targets=targets))
    assert estimate.memory["optimiser"] == expected
    assert expected < 2 * 4 * estimate.trainable


def test_vectors_do_not_decay_and_matrices_do(tmp_path):
    bundle = tiny_bundle()
    settings = OptimizerSettings(1e-2, weight_decay=0.3)
    for group in made(bundle, tmp_path, settings=settings).param_groups:
        assert {parameter.ndim for parameter in group["params"]} == ({2} if group["weight_decay"] == 0.3 else {1})


def test_it_is_refused_with_an_adapter_when_the_plan_is_made():
    with pytest.raises(PlanError, match=r"(?s)galore.*lora|lora.*galore"):
        plan_for(Lora(), Galore())


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(Galore(rank=4, update_interval=2), tmp_path)
