"""LoRA layers as one product against PEFT's own, with the cases in which a layer has to be PEFT's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunekit.values import Precision
from tunekit_train.lowrank import LowRankLinear, one_product
from tunekit_train.testing import BF16, FP32, family_model, tiny_llama, with_lora

EXACT = {"rtol": 1e-6, "atol": 1e-6}
"""fp32: the same sums in another order, of the order of 1."""


@pytest.fixture(autouse=True)
def quiet_peft() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


class Net(nn.Module):
    """Two layers with a bias and one without, whose sizes all differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 40), nn.Linear(40, 16, bias=False), nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))
        return out


def adapted(dropout: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["first", "second"], **options)
    model = get_peft_model(Net(), config)
    randomise_(model)
    return model


def randomise_(model: Any) -> None:
    """No matrix of an adapter is zero, so that all of them get a gradient."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


def inputs(requires_grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    given = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2)).to(dtype)
    return given.requires_grad_(requires_grad)


Results = dict[str, Tensor]


def results(model: Any, given: Tensor, autocast: bool = False) -> Results:
    """The output and all gradients."""
    model.zero_grad()
    given.grad = None
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        out = model(given)
    if out.requires_grad:
        (out.float() ** 2).mean().backward() if out.dtype != torch.float64 else (out**2).mean().backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return {**found, "out": out.detach(), **({} if given.grad is None else {"inputs": given.grad.clone()})}


def assert_same(left: Results, right: Results, **tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        message = partial("{} {}".format, name)
        torch.testing.assert_close(left[name], right[name], **(tolerance or EXACT), msg=message)


class Counted:
    """How often a layer was one product."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, plain = 0, LowRankLinear.apply

        def apply(*arguments: Any) -> Any:
            self.calls += 1
            return plain(*arguments)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(LowRankLinear, "apply", apply)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def compare(model: Any, counted: Counted, calls: int, given: Tensor | None = None) -> Results:
    """Hold a model inside `one_product` against itself outside; `calls` layers are one product."""
    given = inputs() if given is None else given
    plain = results(model, given)
    with one_product(model, "auto", FP32):
        ours = results(model, given)
    assert counted.calls == calls
    assert_same(ours, plain)
    return ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", ["both", "down", "up", "neither"])
@pytest.mark.parametrize("given", [True, False])
def test_the_gradients_are_those_of_the_written_out_formula_in_double(bias: bool, trains: str, given: bool) -> None:
    torch.manual_seed(0)
    wide = partial(torch.randn, dtype=torch.float64)
    x = wide(2, 3, 5).requires_grad_(given)
    weight, offset = wide(4, 5), wide(4) if bias else None
    down, up = (
        wide(2, 5).requires_grad_(trains in ("both", "down")),
        wide(4, 2).requires_grad_(trains in ("both", "up")),
    )

    def ours(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        out: Tensor = LowRankLinear.apply(x, weight, offset, down, up, 1.5, torch.float64)  # type: ignore[no-untyped-call]
        return out

    expected = x @ weight.T + 1.5 * (x @ down.T) @ up.T + (0 if offset is None else offset)
    torch.testing.assert_close(ours(x, down, up), expected)
    if given or trains != "neither":
        assert torch.autograd.gradcheck(ours, (x, down, up))


def test_no_gradient_of_the_base_is_computed_and_only_what_is_small_is_kept() -> None:
    x, weight = torch.randn(50, 24, requires_grad=True), torch.randn(40, 24)
    down, up = torch.randn(4, 24, requires_grad=True), torch.randn(40, 4, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        LowRankLinear.apply(x, weight, None, down, up, 1.0, torch.float32)  # type: ignore[no-untyped-call]
    own = [each for each in kept if each.data_ptr() not in {part.data_ptr() for part in (x, weight, down, up)}]
    assert sorted(each.numel() for each in own) == [4 * 40, 4 * 50]


@pytest.mark.parametrize("given", [True, False])
def test_outputs_and_gradients_are_pefts(given: bool, counted: Counted) -> None:
    found = compare(adapted(), counted, calls=2, given=inputs(requires_grad=given))
    assert ("inputs" in found) is given
    assert all(value.abs().max() > 0 for value in found.values())


def test_inputs_that_do_not_lie_end_to_end_are_understood(counted: Counted) -> None:
    crossed = inputs().transpose(0, 1)
    assert not crossed.is_contiguous()
    compare(adapted(), counted, calls=2, given=crossed)


@pytest.mark.parametrize(
    ("base", "adapter", "autocast"),
    [
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_in_bf16_nothing_is_further_from_the_exact_numbers_than_pefts(
    base: torch.dtype, adapter: torch.dtype, autocast: bool, counted: Counted
) -> None:
    """bf16 keeps 8 bits, so a rounding errs by up to 2^-9; ours are fewer. Entries are such that bf16 holds them."""
    errors: dict[str, list[Tensor]] = {"ours": [], "pefts": []}
    for seed in range(4):
        layer, given, gradient = one_layer(seed, base, adapter, torch.bfloat16 if autocast else base)
        exact = passed(copy.deepcopy(layer).double(), given.double(), gradient.double(), autocast=False)
        pefts = passed(layer, given, gradient, autocast)
        with one_product(layer, "auto", BF16):
            ours = passed(layer, given, gradient, autocast)
        assert [each.dtype for each in ours] == [each.dtype for each in pefts]
        for who, found in (("ours", ours), ("pefts", pefts)):
            pairs = zip(found, exact, strict=True)
            errors[who].append(torch.stack([(each.double() - true).norm() / true.norm() for each, true in pairs]))
    ours_wrong, pefts_wrong = (torch.stack(errors[who]).mean(0) for who in ("ours", "pefts"))
    assert counted.calls == 4
    assert (ours_wrong < 2**-8).all(), ours_wrong
    assert (ours_wrong <= 1.02 * pefts_wrong).all(), (ours_wrong, pefts_wrong)


def one_layer(seed: int, base: torch.dtype, adapter: torch.dtype, product: torch.dtype) -> tuple[Any, Tensor, Tensor]:
    """A LoRA layer of 64 x 96, inputs for it, and the gradient of its output."""
    torch.manual_seed(seed)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 96)), LoraConfig(r=8, lora_alpha=24, target_modules=["0"]))
    for parameter in model.parameters():
        value = (torch.randn_like(parameter) * 0.3).to(torch.bfloat16)
        parameter.data = value.to(adapter if parameter.requires_grad else base)
    return model, torch.randn(200, 64).to(product), torch.randn(200, 96).to(product)


def passed(model: Any, given: Tensor, gradient: Tensor, autocast: bool) -> list[Tensor]:
    """The output and the gradients of the input and both matrices."""
    given = given.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        out = model(given)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, [given, *trained], gradient)]


def test_without_autocast_several_dtypes_are_left_to_peft(counted: Counted) -> None:
    model = adapted()
    for parameter in model.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.to(torch.bfloat16)
    compare(model, counted, calls=0, given=inputs(dtype=torch.bfloat16))
    with one_product(model, "auto", FP32) as taken:
        assert taken.facts() == {
            "lora_product_layers": 0,
            "lora_product_left": {"its weights are of several dtypes, and nothing casts them": 2},
        }


def test_without_gradients_the_output_is_the_same_and_nothing_is_kept(counted: Counted) -> None:
    model = adapted().eval()
    plain = model(inputs()).detach()
    with one_product(model, "auto", FP32), torch.no_grad():
        out = model(inputs())
    torch.testing.assert_close(out, plain, **EXACT)
    assert counted.calls == 2
    assert out.grad_fn is None


def test_an_adapter_switched_off_is_off(counted: Counted) -> None:
    model = adapted()
    with one_product(model, "auto", FP32), model.disable_adapter():
        off = model(inputs())
    torch.manual_seed(0)
    torch.testing.assert_close(off, Net()(inputs()), **EXACT)
    assert counted.calls == 0


def test_another_adapter_made_active_in_training_is_the_one_that_acts(counted: Counted) -> None:
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=2, target_modules=["first"]))
    randomise_(model)
    model.set_adapter("other")
    other = results(model, inputs())
    model.set_adapter("default")
    with one_product(model, "auto", FP32):
        model(inputs())
        model.set_adapter("other")
        assert_same(results(model, inputs()), other)
        assert any("other" in name for name in other)
        assert counted.calls == 3  # two for the first adapter, one for the second, which has one layer only


def test_two_active_adapters_are_left_to_peft(counted: Counted) -> None:
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"]))
    randomise_(model)
    model.base_model.set_adapter(["default", "other"])
    compare(model, counted, calls=0)


def test_merged_weights_are_not_added_twice(counted: Counted) -> None:
    model = adapted()
    plain = model(inputs()).detach()
    with one_product(model, "auto", FP32):
        model.merge_adapter()
        torch.testing.assert_close(model(inputs()), plain, rtol=1e-5, atol=1e-5)
        assert counted.calls == 0
        model.unmerge_adapter()
        torch.testing.assert_close(model(inputs()), plain, rtol=1e-5, atol=1e-5)
        assert counted.calls == 2


def test_dropout_is_pefts_in_training_and_none_in_evaluation(counted: Counted) -> None:
    model = adapted(dropout=0.5)
    model.eval()
    with one_product(model, "auto", FP32) as taken:
        assert taken.facts()["lora_product_left"] == {"it has dropout": 2}
        model.train()
        outs = [model(inputs()).detach() for _ in range(2)]
        assert not torch.equal(*outs)
        assert counted.calls == 0
    compare(model.eval(), counted, calls=2)


def test_a_base_that_trains_is_pefts_and_gets_its_gradient(counted: Counted) -> None:
    found = compare(adapted(bias="all"), counted, calls=1)
    assert any(name.endswith("first.base_layer.bias") for name in found)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "its adapter is a DoraLinearVariant"),
        ({"lora_bias": True}, "its adapter is more than two matrices"),
    ],
)
def test_variants_of_lora_are_left_to_peft(options: dict[str, Any], reason: str, counted: Counted) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["first"], **options)
    model = get_peft_model(Net(), config)
    randomise_(model)
    compare(model, counted, calls=0)
    with one_product(model, "auto", FP32) as taken:
        assert taken.facts() == {"lora_product_layers": 0, "lora_product_left": {reason: 1}}


def test_a_base_of_another_class_stays_as_it_is(counted: Counted) -> None:
    class Packed(nn.Linear):
        """Stands for a quantised layer, which is a subclass with a weight of its own kind."""

    model = adapted()
    model.base_model.model.second.base_layer.__class__ = Packed
    compare(model, counted, calls=1)
    with one_product(model, "auto", FP32) as taken:
        assert (taken.layers, taken.left) == (1, {"its base is a Packed": 1})


def test_layers_of_other_kinds_are_counted_and_left(counted: Counted) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 24), nn.Linear(24, 5))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "1"]))
    compare(model, counted, calls=1, given=torch.arange(9)[None])
    with one_product(model, "auto", FP32) as taken:
        assert (taken.layers, taken.left) == (1, {"a LoRA layer of type Embedding": 1})


def test_hooks_inside_a_layer_are_still_called(counted: Counted) -> None:
    model, seen = adapted(), []
    with one_product(model, "auto", FP32):
        layer = model.base_model.model.first
        handle = layer.lora_A["default"].register_forward_hook(lambda *_: seen.append("down"))
        model(inputs())
        assert (seen, counted.calls) == (["down"], 1)
        handle.remove()
        layer.register_forward_hook(lambda *_: seen.append("layer"))
        model(inputs())
        assert (seen, counted.calls) == (["down", "layer"], 3)


def test_a_shard_of_a_weight_is_left_to_whoever_gathers_it(counted: Counted) -> None:
    model = adapted()
    weight = model.base_model.model.first.base_layer.weight
    whole, weight.data = weight.data, torch.empty(0)
    with one_product(model, "auto", FP32) as taken:
        assert taken.left == {"its weights are not whole in this process": 1}
    weight.data, weight.ds_id = whole, 7
    compare(model, counted, calls=1)


def test_adapter_names_for_each_row_are_pefts(counted: Counted) -> None:
    model = adapted().eval()
    names = ["default", "__base__", "default"]
    plain = model(inputs(), adapter_names=names)
    with one_product(model, "auto", FP32):
        torch.testing.assert_close(model(inputs(), adapter_names=names), plain, **EXACT)
    assert counted.calls == 0


def test_weights_saved_beside_an_adapter_train_as_they_do(counted: Counted) -> None:
    found = compare(adapted(modules_to_save=["head"]), counted, calls=2)
    assert any("modules_to_save" in name for name in found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_give_the_same_gradients(reentrant: bool, counted: Counted) -> None:
    model = adapted()
    plain = results(model, inputs(requires_grad=True))

    class Checkpointed(nn.Module):
        def forward(self, given: Tensor) -> Any:
            return checkpoint(model, given, use_reentrant=reentrant)

        def named_parameters(self, *_: Any, **__: Any) -> Any:
            return model.named_parameters()

        def zero_grad(self, set_to_none: bool = True) -> None:
            model.zero_grad(set_to_none)

    with one_product(model, "auto", FP32):
        assert_same(results(Checkpointed(), inputs(requires_grad=True)), plain)
    assert counted.calls == 4


def test_a_backward_through_the_backward_is_refused() -> None:
    given = inputs(requires_grad=True)
    model = adapted()
    with one_product(model, "auto", FP32):
        (gradient,) = torch.autograd.grad(model(given).sum(), given, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_every_layer_is_put_back_even_after_an_error() -> None:
    model = adapted()
    with pytest.raises(KeyError), one_product(model, "auto", FP32):
        raise KeyError(replaced(model))
    assert replaced(model) == 0
    with one_product(model, "auto", FP32):
        assert replaced(model) == 2
    assert Linear.forward.__module__.startswith("peft.")


def replaced(model: nn.Module) -> int:
    """How many modules have a forward of their own instead of their class's."""
    return sum("forward" in vars(module) for module in model.modules())


def test_a_forward_that_somebody_replaced_is_left_and_kept(counted: Counted) -> None:
    model = adapted()
    layer = model.base_model.model.first
    layer.forward = theirs = lambda given: torch.zeros(*given.shape[:-1], 40)
    with one_product(model, "auto", FP32) as taken:
        model(inputs())
        assert (counted.calls, taken.left) == (1, {"its forward is replaced already": 1})
    assert layer.forward is theirs


def test_a_deep_copy_made_in_training_computes_with_its_own_weights(counted: Counted) -> None:
    model = adapted()
    with one_product(model, "auto", FP32):
        twin = copy.deepcopy(model)
        before = twin(inputs()).detach()
        for parameter in model.parameters():
            parameter.data.zero_()
        assert torch.equal(twin(inputs()), before)
        assert counted.calls == 4


def test_never_leaves_every_layer_to_peft(counted: Counted) -> None:
    model = adapted()
    with one_product(model, "never", FP32) as taken:
        model(inputs())
    assert (taken.layers, taken.left) == (0, {"compute.lora_product is never": 2})
    assert counted.calls == 0


def test_products_in_another_dtype_are_left_to_peft(counted: Counted) -> None:
    half = Precision("cpu", "float16", "float16", "float32", "tests")
    model = adapted()
    with one_product(model, "auto", half) as taken, torch.autocast("cpu", torch.float16):
        model(inputs())
    assert (counted.calls, taken.left) == (0, {"its products are in torch.float16": 2})


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        *((family, 14) for family in ("llama", "qwen3", "gemma2", "gemma3_text", "mistral")),
        ("gpt_oss", 8),  # its experts are no linear layers
        ("gpt2", 0),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_all_linear_layers_of_a_model_are_taken_where_they_are_plain(family: str, layers: int) -> None:
    model = with_lora(family_model(family))
    ids = torch.arange(3, 20)[None]

    def logits_and_gradients() -> Results:
        model.zero_grad()
        out = model(ids).logits
        out.logsumexp(-1).sum().backward()
        found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        return {**found, "out": out.detach()}

    plain = logits_and_gradients()
    with one_product(model, "auto", FP32) as taken:
        assert taken.layers == layers
        assert_same(logits_and_gradients(), plain, rtol=1e-4, atol=2e-6)


def test_training_gives_the_losses_of_pefts_layers(run_training: Callable[..., Any]) -> None:
    def trained(choice: str) -> Any:
        model = with_lora(tiny_llama())
        options = {"epochs": 3, "learning_rate": 1e-2, "evaluate": {"share": 0.2}, "compute": {"lora_product": choice}}
        return run_training(model, **options)

    ours, pefts = trained("auto"), trained("never")
    assert ours.values("loss") == pytest.approx(pefts.values("loss"), rel=1e-5)
    assert ours.result.metrics["eval_loss"] == pytest.approx(pefts.result.metrics["eval_loss"], rel=1e-5)
    assert ours.result.facts["lora_product_layers"] == 14
    assert pefts.result.facts["lora_product_left"] == {"compute.lora_product is never": 14}
    assert replaced(ours.result.bundle.model) == 0


def test_a_resumed_run_reaches_the_weights_of_an_uninterrupted_one(
    run_training: Callable[..., Any], tmp_path: Any
) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-2, "checkpoint": {"every": 2}, "steps": 5}
    whole = run_training(with_lora(tiny_llama()), folder=tmp_path / "run", **options)
    (tmp_path / "run" / "checkpoints" / "step-4").rename(tmp_path / "away")
    resumed = run_training(with_lora(tiny_llama()), folder=tmp_path / "run", resume=True, **options)
    assert resumed.steps("started") == [2]
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name])
