"""What every objective has to satisfy: subclass `ObjectiveSuite`, and say how the objective and its items are made."""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from tunekit.values import Item

from .config import TrainConfig
from .fitting import chunking_obstacle
from .forward import Strategy, base_model, prepared
from .items import Items
from .job import Job
from .objective import Batch, Objective, Sum
from .sources import Sources

STRATEGIES = {
    "shared prompts": Strategy("segments", "suite", share_prompts=True),
    "end to end": Strategy("segments", "suite"),
    "padded": Strategy("padded", "suite"),
}


class Outcome(NamedTuple):
    """What one batch, or several micro-batches, gave: the loss, metrics and gradients by the parameters' names."""

    loss: Tensor
    metrics: Mapping[str, Sum]
    gradients: Mapping[str, Tensor]


class Bench:
    """A tiny model and an objective whose needs are prepared; what trains is then moved away from where it starts."""

    def __init__(self, objective: Objective, items: Sequence[Item], model: Any, folder: Path) -> None:
        from .testing import bundle, context

        self.objective, self.items, self.model = objective, items, model
        folder.mkdir(parents=True, exist_ok=True)
        strategy = STRATEGIES["end to end"]
        job = Job(objective, Items(items), bundle(model), TrainConfig(epochs=2), context(folder), strategy)
        with prepared(model, strategy, autocast=False):
            self.sources = Sources(job, None)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.trained.values():
                parameter.add_(torch.randn_like(parameter) * 0.05)

    @property
    def trained(self) -> dict[str, Any]:
        """The parameters that train."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def run(self, batches: Iterable[Sequence[Item]], strategy: str = "shared prompts") -> Outcome:
        """Add up micro-batches. Loss and gradients are sums, as the objective gives them."""
        self.sources.strategy = STRATEGIES[strategy]
        self.model.zero_grad()
        loss, metrics = torch.zeros(()), dict[str, Sum]()
        with prepared(self.model, self.sources.strategy, autocast=False):
            for items in batches:
                batch = Batch(tuple(items))
                sums = self.objective.sums(batch, self.sources.provide(self.model, batch, torch.device("cpu")))
                sums.loss.backward()  # type: ignore[no-untyped-call]
                loss = loss + sums.loss.detach()
                for name, value in sums.metrics.items():
                    before = metrics.get(name, Sum(0.0, 0.0))
                    metrics[name] = Sum(before.total + value.total, before.weight + value.weight)
        gradients = {name: each.grad.clone() for name, each in self.trained.items() if each.grad is not None}
        return Outcome(loss, metrics, gradients)


class ObjectiveSuite:
    """What the engine relies on, tried on a tiny model with an adapter.

    `tolerance` is the largest difference, relative to the largest value of its kind, that another order of the same
    fp32 sums may leave. `unmoved` names parameters that rightly get a gradient of zero: differences of values say
    nothing of the offset of the value head.
    """

    tolerance: ClassVar[float] = 1e-4
    unmoved: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def objective(self) -> Objective:
        """Make the objective, afresh each time."""

    def items(self) -> list[Item]:
        """Items as the stage makes them, four at least, and the same each time."""
        from .testing import random_items

        return random_items(6)

    def model(self) -> Any:
        """What is trained, the same each time."""
        from .testing import tiny_llama, with_lora

        return with_lora(tiny_llama())

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        """The objective with what it needs."""
        return Bench(self.objective(), self.items(), self.model(), tmp_path)

    def test_the_weight_is_known_from_the_data_alone(self) -> None:
        """It is a finite number above zero, and that of a batch is the sum over its items."""
        objective, items = self.objective(), self.items()
        weight = objective.weight(Batch(tuple(items)))
        assert math.isfinite(weight)
        assert weight > 0
        assert weight == pytest.approx(sum(objective.weight(Batch((item,))) for item in items))

    def test_micro_batches_add_up_to_one_batch(self, bench: Bench) -> None:
        """Loss, metrics and gradients; an objective that says that it couples the batch does."""
        items = bench.items
        whole = bench.run([items])
        parts = bench.run([items[:1], items[1:3], items[3:]])
        if bench.objective.couples_batch:
            assert self._differ(whole, parts), "it says that it couples the batch, and its sums add up"
        else:
            self._assert_same(whole, parts)

    @pytest.mark.parametrize("strategy", ["end to end", "padded"])
    def test_it_does_not_matter_how_a_batch_is_laid_out(self, bench: Bench, strategy: str) -> None:
        """Sharing prompts, laying sequences end to end and padding give the same loss, metrics and gradients."""
        self._assert_same(bench.run([bench.items]), bench.run([bench.items], strategy))

    def test_a_head_that_runs_in_parts_gives_the_same(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same loss, metrics and gradients, and all logits are never there at once, unless a need takes them so."""
        if (why := chunking_obstacle(bench.objective.needs)) is not None:
            pytest.skip(why)
        whole, seen = bench.run([bench.items]), list[int]()
        head = base_model(bench.model).get_output_embeddings()
        monkeypatch.setattr("tunekit_train.chunked.CHUNK_LOGITS", 3 * head.weight.shape[0])
        handle = head.register_forward_hook(lambda module, given, out: seen.append(out.shape[-2]))
        bench.sources.chunked = True
        parts = bench.run([bench.items])
        handle.remove()
        assert 0 < max(seen) <= 3, f"the head ran at {max(seen)} positions at once, and 3 were asked for"
        self._assert_same(whole, parts)

    def test_all_that_trains_gets_a_gradient(self, bench: Bench) -> None:
        """A finite one that is not zero."""
        gradients = bench.run([bench.items]).gradients
        assert gradients.keys() == bench.trained.keys()
        for name, gradient in gradients.items():
            assert torch.isfinite(gradient).all(), f"{name} has a gradient that is no finite number"
            assert gradient.any() or name in self.unmoved, f"{name} has a gradient of zero"

    def test_metrics_are_sums_with_their_weights(self, bench: Bench) -> None:
        """Finite numbers, with a weight that is not negative, under the same names for every batch."""
        whole, first = bench.run([bench.items]).metrics, bench.run([bench.items[:1]]).metrics
        assert whole.keys() == first.keys()
        for name, value in whole.items():
            assert math.isfinite(float(value.total)), name
            assert float(value.weight) >= 0, name

    def test_the_same_batch_gives_the_same_sums(self, bench: Bench) -> None:
        """No randomness, and no state that changes unseen: `sums` only reads it."""
        before = _through_a_file(bench.objective.state())
        left, right = bench.run([bench.items]), bench.run([bench.items])
        assert torch.equal(left.loss, right.loss)
        assert left.metrics == right.metrics
        _assert_same_state(bench.objective.state(), before)

    def test_the_state_comes_back_from_a_checkpoint_as_it_was(self, bench: Bench) -> None:
        """And with it the very same loss."""
        bench.objective.observe(bench.run([bench.items]).metrics)
        kept = _through_a_file(bench.objective.state())
        expected = bench.run([bench.items]).loss
        bench.objective = self.objective()
        bench.objective.load_state(kept)
        _assert_same_state(bench.objective.state(), kept)
        assert torch.equal(bench.run([bench.items]).loss, expected)

    def _assert_same(self, left: Outcome, right: Outcome) -> None:
        for what, one, other in self._pairs(left, right):
            difference, bound = float((one - other).abs().max()), self.tolerance * max(1e-3, float(one.abs().max()))
            assert difference <= bound, f"{what} differs by {difference:.2g}, and rounding explains {bound:.2g}"

    def _differ(self, left: Outcome, right: Outcome) -> bool:
        return any(
            float((one - other).abs().max()) > self.tolerance * float(one.abs().max())
            for _, one, other in self._pairs(left, right)
        )

    def _pairs(self, left: Outcome, right: Outcome) -> Iterable[tuple[str, Tensor, Tensor]]:
        assert left.metrics.keys() == right.metrics.keys()
        assert left.gradients.keys() == right.gradients.keys()
        yield "the loss", left.loss, right.loss
        for name in left.metrics:
            yield f"the metric {name}", torch.tensor(left.metrics[name]), torch.tensor(right.metrics[name])
        for name in left.gradients:
            yield f"the gradient of {name}", left.gradients[name], right.gradients[name]


def _through_a_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    kept: dict[str, Any] = torch.load(file, weights_only=True)
    return kept


def _assert_same_state(left: Any, right: Any) -> None:
    if isinstance(left, Mapping):
        assert left.keys() == right.keys()
        for name in left:
            _assert_same_state(left[name], right[name])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _assert_same_state(one, other)
    elif isinstance(left, Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right
