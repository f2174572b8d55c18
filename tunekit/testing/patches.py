"""What a patch has to satisfy: it acts as it says, says so, and can be taken back."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..values import ModelBundle, Report
from .observing import Snapshot, gradients, logits, same, snapshot, training_logits
from .plugins import PluginSuite
from .tiny import tiny_bundle

Effect = Literal["parameters", "evaluation", "training", "gradients"]
"""What a patch may change: stored values, outputs in evaluation mode, outputs in training mode, gradients."""


class PatchSuite(PluginSuite):
    """Say in `changes` what the patch changes; everything else has to stay bit-identical."""

    changes: ClassVar[frozenset[Effect]]

    def bundle(self) -> ModelBundle:
        """What is patched: the same tiny model each time, unless the subclass has another."""
        return tiny_bundle()

    def patch_(self, bundle: ModelBundle) -> Report:
        """Patch the bundle in place and return the plugin's report."""
        report: Report = self.calls().own("tunekit_patch", bundle=bundle)
        return report

    def test_it_changes_what_it_says_and_nothing_else(self) -> None:
        """Each effect of `changes` shows, and no other."""
        bundle = self.bundle()
        before = _observe(bundle.model)
        self.patch_(bundle)
        after = _observe(bundle.model)
        shown = {effect for effect in before if not same(before[effect], after[effect])}
        assert shown == set(self.changes)

    def test_undoing_restores_every_output_and_parameter(self) -> None:
        """After `undo` the model is bit-identical to the one before, and carries no hook of the patch."""
        bundle = self.bundle()
        before, hooks = _observe(bundle.model), _hooks(bundle.model)
        report = self.patch_(bundle)
        assert report.undo is not None, "the report has no undo"
        report.undo()
        after = _observe(bundle.model)
        left = {effect for effect in before if not same(before[effect], after[effect])}
        assert not left, f"undo left changed {left}"
        assert _hooks(bundle.model) == hooks, "undo left hooks behind"

    def test_another_model_of_the_same_class_is_not_touched(self) -> None:
        """The instance is patched, never the library's class."""
        patched, other = self.bundle(), self.bundle()
        before = _observe(other.model)
        self.patch_(patched)
        after = _observe(other.model)
        touched = {effect for effect in before if not same(before[effect], after[effect])}
        assert not touched, f"the patch of one model changed {touched} of another"

    def test_the_report_says_in_one_line_what_was_done(self) -> None:
        """The summary goes to the record, for people."""
        summary = self.patch_(self.bundle()).summary
        assert summary.strip()
        assert "\n" not in summary


def _observe(model: Any) -> dict[Effect, Snapshot]:
    """Everything that a patch could change. What was only looked at has not changed."""
    return {
        "parameters": snapshot(model),
        "evaluation": {"logits": logits(model)},
        "training": {"logits": training_logits(model)},
        "gradients": gradients(model),
    }


def _hooks(model: Any) -> dict[str, int]:
    """How many hooks each module carries."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {name: sum(len(getattr(module, kind)) for kind in kinds) for name, module in model.named_modules()}
