"""What an adapter has to satisfy: starts as the identity, trains alone, and is saved as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ..calls import Calls, implements
from ..values import Context, ModelBundle
from .data import prepared_items
from .observing import changed, logits, snapshot, train_, trainable
from .plugins import PluginSuite
from .runs import estimate_for, run_context
from .tiny import MIXED, tiny_bundle


class AdapterSuite(PluginSuite):
    """For plugins that decide what trains. A variant of another plugin's adapter names that one as its companion.

    `tolerance` is the largest absolute difference of logits, which are below 1 in the tiny model, that rounding may
    leave between two ways of computing the same.
    """

    tolerance: ClassVar[float] = 1e-5

    def bundle(self, **changes: Any) -> ModelBundle:
        """What the adapter is put on: the same tiny model each time; `changes` set fields of the bundle."""
        return tiny_bundle(**changes)

    def context(self, seed: int = 0) -> Context:
        """That of a run with the adapter, in which there is data to learn from."""
        return run_context(self.make(), *self.companions, seed=seed, data=prepared_items())

    def attached(self, seed: int = 0, **changes: Any) -> ModelBundle:
        """The bundle with the adapter on it."""
        context = self.context(seed)
        attached: ModelBundle = context.calls.own(
            "tunekit_attach_adapter", bundle=self.bundle(**changes), context=context
        )
        return attached

    def test_a_fresh_adapter_leaves_the_outputs_as_they_were(self) -> None:
        """Training starts from the model the user named."""
        _assert_close(logits(self.attached().model), logits(self.bundle().model), self.tolerance)

    def test_only_its_own_parameters_train(self) -> None:
        """After a few steps each trainable parameter has moved, and every other value is bit-identical."""
        model = self.attached().model
        named, before = set(trainable(model)), snapshot(model)
        assert named, "nothing trains"
        losses = train_(model)
        moved = changed(before, snapshot(model))
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
        assert moved <= named, f"frozen, but moved: {sorted(moved - named)}"
        assert moved == named, f"trainable, but never moved: {sorted(named - moved)}"

    def test_it_trains_fewer_parameters_than_the_model_has(self) -> None:
        """That is what an adapter is for."""
        model = self.attached().model
        assert sum(p.numel() for p in trainable(model).values()) < sum(
            p.numel() for p in self.bundle().model.parameters()
        )

    def test_a_second_adapter_stands_beside_it_where_the_plugin_carries_several(self) -> None:
        """Switched to, each is what it was, and switched off the model is the base, bit for bit."""
        context = self.context()
        calls = context.calls
        assert isinstance(calls, Calls)
        owner = calls.owner("tunekit_attach_adapter")
        if owner is None or "adapter.named" not in owner.plugin.provides or self._changes_the_base():
            return
        first = calls.own("tunekit_attach_adapter", bundle=self.bundle(adapter_name="first"), context=context)
        train_(first.model)
        said = logits(first.model)
        second = calls.own(
            "tunekit_attach_adapter", bundle=replace(first, adapter_name="second", saved_adapter=None), context=context
        )
        _assert_close(logits(second.model), logits(self.bundle().model), self.tolerance)
        assert second.adapters is not None
        for name, expected in (("first", said), (None, logits(self.bundle().model))):
            _assert_close(logits(second.adapters.switch(second.model, name)), expected, 0.0)

    def _changes_the_base(self) -> bool:
        return any("base.changed" in plugin.provides for plugin in (self.make(), *self.companions))

    def test_what_trains_is_stored_in_the_dtype_of_the_policy(self) -> None:
        """Mixed precision keeps trained parameters in the policy's `trainable` dtype."""
        model = self.attached(precision=MIXED).model
        assert {str(p.dtype) for p in trainable(model).values()} == {f"torch.{MIXED.trainable}"}
        frozen = {str(p.dtype) for p in model.parameters() if not p.requires_grad}
        assert frozen <= {f"torch.{MIXED.weights}"}, f"frozen weights are stored in {frozen}"

    def test_a_saved_adapter_reopens_with_the_same_outputs(self, tmp_path: Path) -> None:
        """Onto a freshly loaded base; a PEFT model through PEFT's own format."""
        bundle = self.attached()
        model = bundle.model
        train_(model)
        folder = tmp_path / "adapter"
        if bundle.save is not None:
            bundle.save(model, folder)
        else:
            model.save_pretrained(str(folder))
        if bundle.save is None or hasattr(model, "peft_config"):
            assert (folder / "adapter_config.json").is_file(), "not PEFT's format: no adapter_config.json"
            assert (folder / "adapter_model.safetensors").is_file(), "not PEFT's format: no adapter_model.safetensors"
        reopened = self.attached(saved_adapter=folder).model
        _assert_close(logits(reopened), logits(model), self.tolerance)
        assert not _close(logits(reopened), logits(self.bundle().model), self.tolerance), "training changed nothing"
        assert trainable(reopened).keys() == trainable(model).keys(), "a next stage could not train it on"

    def test_the_merged_model_answers_as_the_adapted_one(self) -> None:
        """Merging changes where the update is stored and nothing else; weights that train in place are merged."""
        model = self.attached().model
        train_(model)
        expected = logits(model)
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        _assert_close(logits(merged), expected, self.tolerance)

    def test_the_same_seed_gives_the_same_adapter_whatever_came_before(self) -> None:
        """Randomness comes from the run's seed alone, and training it twice gives the same numbers."""
        import torch

        first = self.attached(seed=1).model
        torch.randn(7)
        second = self.attached(seed=1).model
        assert not changed(snapshot(first), snapshot(second)), "two fresh adapters differ"
        assert train_(first) == train_(second)
        assert not changed(snapshot(first), snapshot(second)), "the same training gives different numbers"

    def test_the_plan_counts_the_parameters_that_the_run_will_train(self) -> None:
        """The estimate is made on shapes alone, and is exact in what it counts."""
        plugins = (self.make(), *self.companions)
        assert any(implements(plugin, "tunekit_estimate") for plugin in plugins), "no plugin estimates this adapter"
        estimate, model = estimate_for(*plugins), self.attached().model
        assert estimate.trainable == sum(p.numel() for p in trainable(model).values())
        assert estimate.parameters == sum(p.numel() for p in model.parameters())


def _close(one: Any, other: Any, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance)


def _assert_close(one: Any, other: Any, tolerance: float) -> None:
    difference = float((one - other).abs().max())
    assert difference <= tolerance, f"logits differ by {difference:.3g}, more than {tolerance:.3g}"
