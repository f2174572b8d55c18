"""What an optimiser has to satisfy: it learns, obeys the schedule, and continues where it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..values import ModelBundle, OptimizerSettings
from .observing import Snapshot, changed, snapshot, train_, trainable
from .plugins import PluginSuite
from .runs import stage_context
from .tiny import tiny_bundle


class OptimizerSuite(PluginSuite):
    """`learning_rate` is one at which the optimiser learns; `steps` leaves room for what it does only now and then."""

    learning_rate: ClassVar[float] = 1e-2
    steps: ClassVar[int] = 6

    def bundle(self) -> ModelBundle:
        """What is trained: all weights of the same tiny model each time, unless the subclass has another."""
        return tiny_bundle()

    def optimizer(self, bundle: ModelBundle, folder: Path, **settings: Any) -> Any:
        """Make the optimiser over what trains in the bundle."""
        context = stage_context(self.make(), *self.companions, folder=folder)
        return context.calls.own(
            "tunekit_optimizer",
            bundle=bundle,
            named_parameters=list(trainable(bundle.model).items()),
            settings=OptimizerSettings(
                **{"learning_rate": self.learning_rate, "total_steps": 2 * self.steps, **settings}
            ),
            context=context,
        )

    def trained(self, folder: Path, **settings: Any) -> tuple[list[float], Snapshot]:
        """Train a fresh bundle, and return its losses and its parameters."""
        bundle = self.bundle()
        return train_(bundle.model, self.optimizer(bundle, folder, **settings), self.steps), snapshot(bundle.model)

    def test_it_is_an_optimiser_over_every_parameter_it_was_given(self, tmp_path: Path) -> None:
        """torch's schedulers and checkpoints work on `param_groups`."""
        import torch

        bundle = self.bundle()
        optimizer = self.optimizer(bundle, tmp_path)
        assert isinstance(optimizer, torch.optim.Optimizer)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [name for name, parameter in trainable(bundle.model).items() if id(parameter) not in held]
        assert not missing, f"not optimised: {missing}"

    def test_it_lowers_the_loss(self, tmp_path: Path) -> None:
        """On the same tokens over and over."""
        losses, _ = self.trained(tmp_path)
        assert losses[-1] < 0.95 * losses[0], f"the loss does not fall: {losses}"

    def test_the_same_seed_gives_the_same_numbers(self, tmp_path: Path) -> None:
        """Losses and parameters are bit-identical the second time."""
        (losses, after), (again, after_again) = self.trained(tmp_path), self.trained(tmp_path)
        assert losses == again
        assert not changed(after, after_again)

    def test_the_schedule_reaches_it(self, tmp_path: Path) -> None:
        """A learning rate that a scheduler sets to 0 moves nothing."""
        bundle = self.bundle()
        optimizer = self.optimizer(bundle, tmp_path)
        train_(bundle.model, optimizer, steps=1)
        before = snapshot(bundle.model)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0
        train_(bundle.model, optimizer, steps=1)
        assert not changed(before, snapshot(bundle.model)), "it moves parameters at a learning rate of 0"

    def test_the_weight_decay_of_the_stage_acts(self, tmp_path: Path) -> None:
        """The stage's `weight_decay` reaches the optimiser."""
        _, without = self.trained(tmp_path)
        _, decayed = self.trained(tmp_path, weight_decay=0.5)
        assert changed(without, decayed), "weight_decay changes nothing"

    def test_saved_in_the_middle_it_continues_to_the_same_numbers(self, tmp_path: Path) -> None:
        """Its state survives `torch.load(weights_only=True)`, which is how checkpoints are read."""
        import torch

        whole = self.bundle()
        optimizer = self.optimizer(whole, tmp_path)
        train_(whole.model, optimizer, self.steps)
        torch.save({"model": whole.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        expected = train_(whole.model, optimizer, self.steps)

        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed = self.bundle()
        resumed.model.load_state_dict(saved["model"])
        fresh = self.optimizer(resumed, tmp_path)
        fresh.load_state_dict(saved["optimizer"])
        assert train_(resumed.model, fresh, self.steps) == expected
        assert not changed(snapshot(whole.model), snapshot(resumed.model)), "the parameters differ after resuming"
