"""BAdam: the authors' steps, one block's gradients at a time, and a stage that never sees a frozen block."""

from __future__ import annotations

import warnings

import pytest
import torch
from badam import BlockOptimizer
from transformers import TrainerCallback

from tunekit.errors import DivergedError, PlanError
from tunekit.hooks import hookimpl
from tunekit.testing import estimate_for, plan_for, stage_context, tiny_model
from tunekit.values import OptimizerSettings
from tunekit_badam import Badam
from tunekit_badam.blocks import blocks_of, turn
from tunekit_lora import Lora
from tunekit_sft import Sft
from tunekit_train import AdamW, Sums, TrainConfig, train
from tunekit_train.testing import CrossEntropy, bundle, check_resumes, context, random_items, tiny_llama

BATCH = {"rows": 2, "accumulation": 2}


def made(model, folder, settings=None, **options):
    badam = Badam(**options)
    return badam.tunekit_optimizer(
        bundle=bundle(model),
        named_parameters=list(model.named_parameters()),
        settings=settings or OptimizerSettings(1e-2),
        context=stage_context(badam, Sft(), folder=folder, seed=3),
    )


def take_steps_(model, optimizer, steps, each=lambda: None):
    for step in range(steps):
        ids = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        each()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_it_takes_the_steps_of_the_authors_code(tmp_path, order):
    ours, theirs = tiny_llama(), tiny_llama()
    blocks = [["embed_tokens"], ["layers.0."], ["layers.1."], ["model.norm"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights are fp32
        reference = BlockOptimizer(
            torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0),
            list(theirs.named_parameters()),
            block_prefix_list=blocks,
            switch_block_every=3,
            switch_mode=order,
            verbose=0,
        )
    reference.global_step = -1  # their first block has a step less than the others
    take_steps_(ours, made(ours, tmp_path, switch_every=3, order=order), 13)
    take_steps_(theirs, reference, 13)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(name), atol=1e-5, rtol=1e-4, msg=name)


def test_a_round_has_each_block_once_and_random_rounds_differ():
    for order in ("ascending", "descending", "random"):
        turns = [turn(step, 5, 2, order, seed=1) for step in range(40)]
        assert turns[::2] == turns[1::2]
        rounds = [turns[start : start + 10 : 2] for start in range(0, 40, 10)]
        assert all(sorted(each) == list(range(5)) for each in rounds)
        assert (len(set(map(tuple, rounds))) > 1) == (order == "random")
    assert turns != [turn(step, 5, 2, "random", seed=2) for step in range(40)]


def test_blocks_are_embedding_layers_and_the_rest_of_what_trains():
    model = tiny_model(num_hidden_layers=3)

    def names(layers, parameters):
        found = {id(parameter): name for name, parameter in model.named_parameters()}
        return [{found[id(each)] for each in block} for block in blocks_of(model, parameters, layers)]

    every = list(model.parameters())
    assert [len(block) for block in names(1, every)] == [1, 9, 9, 9, 2]
    assert [len(block) for block in names(2, every)] == [1, 18, 9, 2]
    assert names(1, every)[-1] == {"model.norm.weight", "lm_head.weight"}
    assert [len(block) for block in names(1, list(model.model.layers[1].parameters()))] == [9]


@pytest.mark.parametrize(
    "options",
    [{"switch_every": 2}, {"order": "descending"}, {"layers": 2}, {"beta1": 0.5}, {"beta2": 0.9}, {"eps": 1e-3}],
    ids=str,
)
def test_each_option_changes_the_steps(tmp_path, options):
    after = []
    for chosen in ({}, options):
        model = tiny_llama()
        take_steps_(model, made(model, tmp_path, **{"switch_every": 3, "order": "ascending", **chosen}), 7)
        after.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert not torch.allclose(*after, atol=1e-6, rtol=0)


def test_only_matrices_of_the_current_block_decay(tmp_path):
    model = tiny_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = made(model, tmp_path, OptimizerSettings(1e-2, 0.5), order="ascending", switch_every=1, eps=1e30)
    take_steps_(model, optimizer, 2)
    factors = {name: (parameter.norm() / before[name].norm()).item() for name, parameter in model.named_parameters()}
    decayed = {name for name, factor in factors.items() if abs(factor - 0.995) < 1e-5}
    layer = {name for name, value in before.items() if "layers.0." in name and value.ndim == 2}
    assert decayed == {"model.embed_tokens.weight", *layer}
    assert all(abs(factors[name] - 1) < 1e-6 for name in before.keys() - decayed)


class Watching(Badam):
    """Notes which parameters have a gradient before each step, and which train between steps."""

    @hookimpl
    def tunekit_train_callbacks(self, callbacks, context):
        self.graded, self.trained, self.sizes = [], [], []
        outer = self

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **_):
                outer.graded.append({name for name, each in model.named_parameters() if each.grad is not None})

            def on_step_end(self, args, state, control, model=None, optimizer=None, **_):
                outer.trained.append(all(each.requires_grad for each in model.parameters()))
                held = optimizer.state_dict()["state"].values()
                outer.sizes.append(sum(each["exp_avg"].numel() + each["exp_avg_sq"].numel() for each in held))

        return (*super().tunekit_train_callbacks(callbacks, context), Look())


def trained(folder, plugin, model=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    given = {"learning_rate": 1e-2, "batch": BATCH, "max_grad_norm": 1e9, "steps": 8, **options}
    surroundings = context(folder, plugin=plugin)
    result = train(CrossEntropy(), random_items(16), bundle(model or tiny_llama()), TrainConfig(**given), surroundings)
    return result, dict(result.bundle.model.named_parameters())


def test_in_a_stage_only_the_current_block_has_gradients_and_all_train_between_steps(tmp_path):
    plugin = Watching(switch_every=2, order="ascending")
    trained(tmp_path, plugin)
    assert plugin.graded[0] == plugin.graded[1] == {"model.embed_tokens.weight"}
    assert all("layers.0." in name for name in plugin.graded[2])
    assert len(plugin.graded[2]) == 9
    assert plugin.graded[6] == {"model.norm.weight"}
    assert plugin.trained == [True] * 8


def test_a_stage_that_asks_for_fewer_gradients_takes_the_same_steps(tmp_path):
    class AllGradients(Badam):
        @hookimpl
        def tunekit_train_callbacks(self, callbacks, context):
            return callbacks

    options = {"switch_every": 2, "order": "ascending"}
    _, few = trained(tmp_path / "few", Badam(**options))
    _, every = trained(tmp_path / "every", AllGradients(**options))
    for name, value in few.items():
        torch.testing.assert_close(value, every[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_norm_that_is_clipped_is_that_of_the_current_block(tmp_path):
    norms = {}
    for plugin in (Badam(switch_every=1, order="descending"), AdamW()):
        told, folder = [], tmp_path / type(plugin).__name__
        folder.mkdir()
        surroundings = context(folder, plugin=plugin, emit=told.append)
        config = TrainConfig(learning_rate=1e-2, batch=BATCH, steps=1)
        train(CrossEntropy(), random_items(16), bundle(tiny_llama()), config, surroundings)
        norms[type(plugin)] = next(event.metrics["grad_norm"] for event in told if event.kind == "step")
    assert 0 < norms[Badam] < norms[AdamW] / 2  # the last norm's alone


def test_a_step_that_breaks_off_leaves_everything_that_trains_training(tmp_path):
    class Breaks(CrossEntropy):
        def sums(self, batch, provided):
            sums = super().sums(batch, provided)
            return Sums(sums.loss * float("nan"))

    model = tiny_llama()
    with pytest.raises(DivergedError):
        train(Breaks(), random_items(16), bundle(model), TrainConfig(steps=2), context(tmp_path, plugin=Badam()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_are_kept_only_where_none_of_their_blocks_ever_trains(tmp_path):
    def freeze(count):
        model = tiny_llama(num_hidden_layers=3)
        model.model.embed_tokens.requires_grad_(False)
        for layer in model.model.layers[:count]:
            layer.requires_grad_(False)
        return model

    kept = {}
    for count in (0, 2):
        for choice in ("auto", "never"):
            plugin = Badam(switch_every=1, order="descending")
            options = {"compute": {"frozen_layers": choice}, "batch": {"rows": 4}}
            kept[count, choice] = trained(tmp_path / f"{count}-{choice}", plugin, freeze(count), **options)
    assert kept[0, "auto"][0].facts["frozen_layers"] == 0
    assert kept[2, "auto"][0].facts["frozen_layers"] == 2
    for count in (0, 2):
        (_, auto), (_, never) = kept[count, "auto"], kept[count, "never"]
        for name, value in auto.items():
            torch.testing.assert_close(value, never[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_best_weights_are_those_of_all_blocks(tmp_path):
    plugin, schedule = Badam(switch_every=1, order="descending"), {"shape": "constant"}
    options = {"evaluate": {"share": 0.2, "every": 1}, "learning_rate": 0.3, "schedule": schedule}
    result, best = trained(tmp_path / "best", plugin, checkpoint={"best": True, "every": 0}, **options)
    step = result.facts["best"]["step"]
    assert step < 8, "a smaller learning rate would show nothing"
    _, until = trained(tmp_path / "until", plugin, **{**options, "steps": step})
    assert all(torch.equal(value, until[name]) for name, value in best.items())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_estimate_counts_the_largest_block(tmp_path, layers):
    plugin = Watching(switch_every=2, order="ascending", layers=layers)
    model = tiny_model()
    trained(tmp_path, plugin, model)
    estimate = estimate_for(Badam(layers=layers), Sft())
    assert estimate.memory["optimiser"] == 4 * max(plugin.sizes)
    assert estimate.at_once == max(plugin.sizes) // 2 < estimate.trainable


def test_it_is_refused_with_an_adapter_and_in_several_processes_when_the_plan_is_made():
    with pytest.raises(PlanError, match=r"(?s)badam.*lora|lora.*badam"):
        plan_for(Lora(), Badam())
    assert "processes" in Badam.conflicts


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(Badam(switch_every=2), tmp_path)
