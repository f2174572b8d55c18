"""Schedule-free AdamW: the paper's recursion, and averaged weights wherever somebody looks."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import InterruptedRunError
from tunekit.hooks import hookimpl
from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings
from tunekit_schedule_free import ScheduleFree
from tunekit_schedule_free.rates import highest_so_far
from tunekit_sft import Sft
from tunekit_train import AdamW, Batch, Sum, Sums, TrainConfig, train
from tunekit_train.engine import EngineTrainer
from tunekit_train.testing import CrossEntropy, bundle, check_resumes, context, random_items, tiny_llama

BATCH = {"rows": 2, "accumulation": 2}
EVALUATED = {"share": 0.2, "every": 1}


def made(parameters, folder, rate=1e-2, weight_decay=0.0, **options):
    plugin = ScheduleFree(**options)
    return plugin.tunekit_optimizer(
        bundle=None,
        named_parameters=[(f"weight {number}", each) for number, each in enumerate(parameters)],
        settings=OptimizerSettings(rate, weight_decay),
        context=stage_context(plugin, Sft(), folder=folder),
    )


def slope(weight, step):
    """A gradient that depends on where it is taken, and on the step."""
    generator = torch.Generator().manual_seed(step)
    return weight.detach() - torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


@pytest.mark.parametrize(
    "options", [{}, {"beta1": 0.95, "beta2": 0.99}, {"power": 2.0}, {"rate_power": 0.0}, {"eps": 1e-2}], ids=str
)
def test_it_takes_the_steps_of_the_papers_recursion(tmp_path, options):
    given = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "power": 0.0, "rate_power": 2.0, **options}
    weight = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    optimizer = made([weight], tmp_path, weight_decay=0.1, **options)
    x = z = torch.ones(3, 4, dtype=torch.float64)
    square, total, highest = torch.zeros_like(x), 0.0, 0.0
    for step in range(1, 9):
        rate = 1e-2 * min(1.0, step / 4)  # a warm-up
        optimizer.param_groups[0]["lr"] = rate
        y = (1 - given["beta1"]) * z + given["beta1"] * x
        torch.testing.assert_close(weight.detach(), y)
        gradient = slope(y, step)
        square = given["beta2"] * square + (1 - given["beta2"]) * gradient**2
        root = (square / (1 - given["beta2"] ** step)).sqrt() + given["eps"]
        z = z - rate * (gradient / root + 0.1 * y)
        highest = max(highest, rate)
        share = step ** given["power"] * highest ** given["rate_power"]
        total += share
        x = (1 - share / total) * x + share / total * z
        weight.grad = slope(weight, step)
        optimizer.step()
        optimizer.eval()
        torch.testing.assert_close(weight.detach(), x)
        optimizer.train()


@pytest.mark.parametrize(
    "options",
    [{"beta1": 0.5}, {"beta2": 0.9}, {"eps": 1e-2}, {"power": 3.0}, {"rate_power": 0.0}],
    ids=str,
)
def test_each_option_changes_the_average(tmp_path, options):
    after = []
    for chosen in ({}, options):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        optimizer = made([weight], tmp_path, **chosen)
        for step in range(1, 6):
            optimizer.param_groups[0]["lr"] = 1e-2 * step  # rate_power weighs by the rate
            weight.grad = slope(weight, step)
            optimizer.step()
        optimizer.eval()
        after.append(weight.detach().clone())
    assert not torch.allclose(*after, atol=1e-7, rtol=0)


def test_looking_at_the_average_changes_no_bit_of_what_trains(tmp_path):
    weight = torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    optimizer = made([weight], tmp_path)
    for step in range(3):
        weight.grad = slope(weight, step)
        optimizer.step()
    before = weight.detach().clone()
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(weight, before)
    optimizer.train()
    optimizer.train()
    assert torch.equal(weight, before)
    assert set(optimizer.state[weight]) == {"z", "exp_avg_sq"}, "the copy is kept while it is needed only"


class Holding(ScheduleFree):
    """Keeps the optimiser that it made."""

    @hookimpl
    def tunekit_optimizer(self, bundle, named_parameters, settings, context):
        self.optimizer = super().tunekit_optimizer(bundle, named_parameters, settings, context)
        self.named = dict(named_parameters)
        return self.optimizer


def trained(folder, plugin=None, objective=None, emit=None, resume=False, **options):
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    given = {"steps": 6, "learning_rate": 1e-2, "batch": BATCH, "checkpoint": {"every": 0}, **options}
    surroundings = context(folder, plugin=plugin or Holding(), emit=emit or told.append, resume=resume)
    result = train(
        objective or CrossEntropy(), random_items(16), bundle(tiny_llama()), TrainConfig(**given), surroundings
    )
    return result, dict(result.bundle.model.named_parameters()), told


def test_evaluations_and_what_is_saved_are_those_of_the_averaged_weights(tmp_path):
    plugin = Holding()
    result, weights, told = trained(tmp_path, plugin, evaluate=EVALUATED)
    (saved,) = [load_file(each.path / "model.safetensors") for each in result.artefacts if each.kind == "model"]
    for name, weight in plugin.named.items():
        state = plugin.optimizer.state[weight]
        average = (state["y"] - (1 - 0.9) * state["z"]) / 0.9
        torch.testing.assert_close(weights[name].detach(), average, atol=1e-6, rtol=1e-5)
        assert torch.equal(saved[name], weights[name])
        assert not torch.allclose(state["y"], average, atol=1e-5)
    last = [event.metrics["eval_loss"] for event in told if event.kind == "evaluated"][-1]
    zero = {"steps": 1, "learning_rate": 1e-30, "evaluate": {"share": 0.2, "at_start": True, "every": 1}}
    model = tiny_llama()
    model.load_state_dict(result.bundle.model.state_dict())
    again = []
    config = TrainConfig(**zero, batch=BATCH, checkpoint={"every": 0})
    (tmp_path / "again").mkdir()
    surroundings = context(tmp_path / "again", plugin=AdamW(), emit=again.append)
    train(CrossEntropy(), random_items(16), bundle(model), config, surroundings)
    assert next(event.metrics["eval_loss"] for event in again if event.kind == "evaluated") == pytest.approx(
        last, abs=1e-6
    )


def test_training_goes_on_as_if_nobody_had_evaluated_or_saved(tmp_path):
    _, alone, _ = trained(tmp_path / "alone", evaluate={"share": 0.2, "every": 6})
    _, watched, _ = trained(tmp_path / "watched", evaluate=EVALUATED, checkpoint={"every": 2})
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())


def test_a_checkpoint_holds_averaged_weights_and_those_that_train(tmp_path):
    def stop(event):
        if (event.kind, event.step) == ("saved", 4):
            raise KeyboardInterrupt

    plugin = Holding()
    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        trained(tmp_path / "run", plugin, emit=stop, checkpoint={"every": 2})
    folder = tmp_path / "run" / "checkpoints" / "step-4"
    weights, state = load_file(folder / "model.safetensors"), torch.load(folder / "optimizer.pt", weights_only=True)
    _, until, _ = trained(tmp_path / "until", steps=4)
    for name, value in weights.items():
        assert torch.equal(value, until[name])
    assert all({"y", "z", "exp_avg_sq"} == set(each) for each in state["state"].values())


class Scripted(CrossEntropy):
    """Tells scripted values at its evaluations."""

    def __init__(self, values):
        self.values = iter([0.0, *values])

    def sums(self, batch: Batch, provided) -> Sums:
        sums = super().sums(batch, provided)
        return sums if torch.is_grad_enabled() else Sums(sums.loss, {"score": Sum(next(self.values), 1.0)})


def test_the_best_weights_are_averaged_ones(tmp_path):
    options = {
        "evaluate": {**EVALUATED, "metric": "score", "higher_is_better": False},
        "checkpoint": {"best": True, "every": 0},
    }
    options = {**options, "batch": {"rows": 8}}
    result, best, _ = trained(tmp_path / "best", objective=Scripted([5, 4, 1, 2, 3, 4]), **options)
    assert result.facts["best"]["step"] == 3
    _, until, _ = trained(tmp_path / "until", steps=3, evaluate=EVALUATED, batch={"rows": 8})
    assert all(torch.equal(value, until[name]) for name, value in best.items())


def test_batches_are_drawn_with_the_weights_that_train(tmp_path, monkeypatch):
    plugin, seen, original = Holding(), [], EngineTrainer.get_batch_samples

    def look(self, *arguments):
        samples = original(self, *arguments)
        seen.append(all(group["train_mode"] for group in plugin.optimizer.param_groups))
        return samples

    monkeypatch.setattr(EngineTrainer, "get_batch_samples", look)
    trained(tmp_path, plugin, evaluate=EVALUATED, checkpoint={"every": 2})
    assert seen == [True] * 6


def test_the_rate_rises_as_the_stages_does_and_never_falls(tmp_path):
    rates = highest_so_far(lambda step: step / 4 if step < 4 else math.cos(step))
    assert [rates(step) for step in (2, 0, 4, 9)] == [0.5, 0.0, 0.75, max(math.cos(step) for step in range(4, 10))]
    schedule = {"warmup_steps": 2}
    _, _, told = trained(tmp_path, schedule=schedule, log={"every": 1})
    told = [event.metrics["learning_rate"] for event in told if event.kind == "step"]
    assert told[-1] == told[-2] == 1e-2


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_schedule_that_falls_is_refused_where_it_is_asked_for(shape):
    plugin = ScheduleFree()
    plan = plan_for(plugin, Sft(schedule={"shape": shape}))
    (problem,) = plugin.tunekit_check(plan, plan.machine)
    assert f"is {shape}" in problem.message
    assert problem.where.endswith("schedule.shape")
    for kept in (Sft(), Sft(schedule={"shape": "constant_with_warmup", "warmup_ratio": 0.1})):
        plan = plan_for(plugin, kept)
        assert not list(plugin.tunekit_check(plan, plan.machine))


def test_the_estimate_counts_the_bytes_of_the_state(tmp_path):
    model = tiny_bundle().model
    optimizer = made(list(model.parameters()), tmp_path)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    tensors = [each for state in optimizer.state.values() for each in state.values()]
    assert estimate_for(ScheduleFree(), Sft()).memory["optimiser"] == sum(each.numel() * 4 for each in tensors)


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(ScheduleFree(), tmp_path)
