"""Several LoRA adapters on one model: only the active one computes, trains and is saved, and each stays what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tunekit.adapters import NamedAdapters
from tunekit.errors import TunekitError
from tunekit.plugin import Plugin
from tunekit.testing import run_context, tiny_bundle, tiny_model
from tunekit.values import ModelBundle
from tunekit_dora import Dora
from tunekit_lora import Lora

IDS = torch.tensor([[5, 9, 17, 33, 2]])
AWKWARD = ("l", "model", "weight", "lora", "values")
"""Names that PEFT would take for parts of its own names, or of the model's, or that torch's containers have taken."""


def adapters(*plugins: Plugin[Any]) -> NamedAdapters:
    return NamedAdapters(tiny_bundle(), run_context(*plugins))


def say(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def teach_(bundle: ModelBundle, seed: int) -> None:
    """Give everything that trains other numbers."""
    dice = torch.Generator().manual_seed(seed)
    for parameter in bundle.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)


def trained(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in bundle.model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("variant", [(), (Dora(),)], ids=["lora", "dora"])
def test_each_adapter_says_what_it_said_and_the_base_what_it_ever_did(variant: Any) -> None:
    base, model = say(tiny_model()), adapters(Lora(rank=4, modules_to_save=["lm_head"]), *variant)
    said = {}
    for seed, name in enumerate(AWKWARD):
        bundle = model.use(name)
        assert torch.equal(say(bundle.model), base) or variant, "a fresh adapter changes nothing"
        teach_(bundle, seed)
        said[name] = say(bundle.model)
    for name in AWKWARD:
        assert torch.equal(say(model.use(name).model), said[name]), name
        assert torch.equal(say(model.use(None).model), base)
    assert len({float(logits.sum()) for logits in said.values()}) == len(AWKWARD)


def test_only_the_active_adapter_trains() -> None:
    model = adapters(Lora(rank=4))
    for name in ("first", "second"):
        model.use(name)
    assert model.names == ("first", "second")
    for name in ("first", "second"):
        assert all(f".adapter_{name}." in each for each in trained(model.use(name)))
    assert trained(model.use(None)) == {}


@pytest.mark.parametrize("variant", [(), (Dora(),)], ids=["lora", "dora"])
def test_the_second_adapter_is_the_one_it_would_be_alone(variant: Any) -> None:
    """The same layers, the same numbers: as if there were no other."""
    both, alone = adapters(Lora(rank=4), *variant), adapters(Lora(rank=4), *variant)
    teach_(both.use("first"), 0)
    second, only = trained(both.use("second")), trained(alone.use("second"))
    assert second.keys() == only.keys()
    assert all(torch.equal(second[name], only[name]) for name in only)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's, from_pretrained as it is
@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_saved_is_the_active_adapter_and_comes_back_beside_another(name: str, tmp_path: Path) -> None:
    model = adapters(Lora(rank=4, modules_to_save=["lm_head"]))
    teach_(model.use("other"), 1)
    teach_(bundle := model.use(name), 2)
    expected = say(bundle.model)
    assert bundle.save is not None
    bundle.save(bundle.model, tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    plain = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "saved"))  # type: ignore[arg-type]
    assert torch.equal(say(plain), expected)
    again = adapters(Lora())
    teach_(again.use("other"), 3)
    assert torch.equal(say(again.use("back", tmp_path / "saved").model), expected)


def test_dropping_an_adapter_frees_its_memory() -> None:
    model = adapters(Lora(rank=64))

    def stored() -> int:
        return sum(each.numel() * each.element_size() for each in model.bundle.model.parameters())

    model.use("kept")
    one = stored()
    model.use("gone")
    assert stored() > one
    model.use("kept")
    model.drop("gone")
    assert stored() == one
    assert model.active == "kept"
    model.drop("kept")
    assert model.active is None
    assert stored() == sum(each.numel() * each.element_size() for each in tiny_model().parameters())
    with pytest.raises(TunekitError, match="there is no adapter named 'kept'; the model carries none"):
        model.drop("kept")


def test_an_adapter_is_merged_once_it_is_the_only_one_and_another_goes_on_top() -> None:
    model = adapters(Lora(rank=4))
    teach_(model.use("first"), 0)
    said = say(model.bundle.model)
    model.use("second")
    with pytest.raises(TunekitError, match=r"first cannot be merged while the model carries second.*drop them first"):
        model.merge("first")
    model.drop("second")
    merged = say(model.merge("first").model)
    assert torch.allclose(merged, said, atol=1e-5)
    assert model.names == ()
    teach_(model.use("top"), 1)
    assert not torch.allclose(say(model.bundle.model), merged, atol=1e-3)
    assert torch.equal(say(model.use(None).model), merged)
