"""A saved adapter is trained on as what it is and on the base it was trained on, or the plan says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunekit as tk
from tunekit.catalog import Catalog, hooks_of
from tunekit.errors import PlanError, TunekitError
from tunekit.plan import note_base
from tunekit.testing import save_tiny_model

TALKS = [{"instruction": f"What is {number} and one?", "output": f"It is {number + 1}."} for number in range(8)]
TEXTS = ["What is two and three? Two and three is five."]
SFT = {"steps": 2, "learning_rate": 2e-2, "batch": {"rows": 4}}
LORA = {"lora": {"rank": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("starts") / "model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def pipeline(model: str, use: Any, start: Any = None, stages: int = 1, **options: Any) -> tk.Pipeline:
    """Of `sft` stages, the first of which begins with the adapter of a folder or a run."""
    described = [{"sft": {**SFT, **options}} for _ in range(stages)]
    if start is not None:
        described[0]["sft"]["adapter"] = {"start": str(getattr(start, "adapter", start))}
    return tk.Pipeline(model, TALKS, {"precision": {"compute": "fp32"}, **use}, described)


def refused(model: str, use: Any, start: Any) -> str:
    """What the plan says against it."""
    with pytest.raises(PlanError) as caught:
        pipeline(model, use, start).plan()
    return str(caught.value)


def losses(run: tk.Run) -> list[float]:
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


# On top of another adapter.


@pytest.fixture(scope="module")
def below(model: str, folder: Path) -> tk.Run:
    return pipeline(model, LORA).run(folder / "below")


@pytest.fixture(scope="module")
def top(model: str, below: tk.Run, folder: Path) -> tk.Run:
    """Two stages on top of `below`."""
    return pipeline(model, stacked(below), stages=2).run(folder / "top")


def stacked(below: tk.Run) -> dict[str, Any]:
    return {**LORA, "stack": {"adapter": str(below.adapter)}}


def test_a_stacked_adapter_is_trained_on_beside_the_one_it_stands_on(
    model: str, below: tk.Run, top: tk.Run, tmp_path: Path
) -> None:
    """Stage by stage in two runs, it is what two stages in one run are."""
    first = pipeline(model, stacked(below)).run(tmp_path / "first")
    second = pipeline(model, stacked(below), first).run(tmp_path / "second")
    assert [*losses(first), *losses(second)] == losses(top)


def test_a_stacked_adapter_is_not_put_on_the_bare_base(model: str, below: tk.Run, top: tk.Run) -> None:
    wrong = f"{top.adapter} was trained on top of another adapter"
    assert f"{wrong}, and use.stack adds none; set use.stack.adapter: {top.adapter}/below" in refused(model, LORA, top)
    assert f"{wrong} than use.stack.adapter; set" in refused(model, stacked(top), top)
    assert f"{below.adapter} was trained on the model alone; leave stack out" in refused(model, stacked(below), below)
    session = tk.Session(model, {"precision": {"compute": "fp32"}, **LORA})
    with pytest.raises(TunekitError, match=r"was trained on top of another adapter, and use\.stack adds none"):
        session.add("top", str(top.folder))
    session.add("below", str(below.folder))
    assert session.perplexity(TEXTS) == below.perplexity(TEXTS)


def test_a_stacked_run_goes_on_without_the_folder_it_was_stacked_on(model: str, below: tk.Run, top: tk.Run) -> None:
    """It is opened, exported and resumed with the copy that it keeps, wherever it lies by now."""
    said, moved, gone = top.perplexity(TEXTS), top.folder.with_name("moved"), below.folder.with_name("gone")
    again, whole = (pipeline(model, stacked(below), stages=stages) for stages in (1, 2))
    shutil.copytree(top.folder, moved)
    below.folder.rename(gone)
    try:
        opened = tk.open_run(moved)
        assert opened.perplexity(TEXTS) == said
        exported = opened.export("adapter")
        assert exported.verification.kl < 1e-6
        on_top = {**LORA, "stack": {"adapter": str(exported.folder / "below")}}
        pipeline(model, on_top, exported.folder).plan(estimate=False)
        state = json.loads((moved / "run.json").read_text())
        (moved / "run.json").write_text(json.dumps({**state, "stages": state["stages"][:1], "status": "interrupted"}))
        shutil.rmtree(moved / "stage-2-sft")
        resumed = whole.resume(moved)
        assert losses(resumed) == losses(top)
        assert (Path(str(resumed.adapter)) / "below" / "adapter_model.safetensors").is_file()
        with pytest.raises(PlanError, match="holds no LoRA adapter in PEFT's format"):
            again.plan(estimate=False)
    finally:
        gone.rename(below.folder)


def test_a_finished_run_opens_whatever_became_of_the_folder_it_began_with(
    model: str, below: tk.Run, wide: tk.Run, tmp_path: Path
) -> None:
    """Which its card names still."""
    start = tmp_path / "start"
    shutil.copytree(str(below.adapter), start)
    run = pipeline(model, LORA, start).run(tmp_path / "run")
    shutil.rmtree(start)
    said = tk.open_run(run.folder).perplexity(TEXTS)
    assert said == run.perplexity(TEXTS) != below.perplexity(TEXTS)
    shutil.copytree(str(wide.adapter), start)
    assert tk.open_run(run.folder).perplexity(TEXTS) == said
    assert run.record.given_recipe.stages[0].adapter.start == str(start)


def test_a_stage_that_has_not_finished_resumes_from_the_folder_it_began_with(
    model: str, below: tk.Run, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(str(below.adapter), start)
    run = pipeline(model, LORA, start).run(tmp_path / "run")
    state, ran = json.loads((run.folder / "run.json").read_text()), losses(run)
    (run.folder / "run.json").write_text(json.dumps({**state, "stages": [], "status": "interrupted"}))
    shutil.rmtree(run.folder / "stage-1-sft")
    assert losses(pipeline(model, LORA, start).resume(run.folder)) == ran


# On a base that other plugins have changed.

TOKENS = {"vocabulary": {"tokens": ["What is"], "special_tokens": ["<|shop|>"]}}
YARN = {"rope": {"scaling": "yarn", "length": 8192}}


def test_tokens_that_have_each_other_s_ids_make_another_base(model: str, below: tk.Run, tmp_path: Path) -> None:
    """In the order in which they are named; noise that is not drawn makes none."""
    described = {"It is": "an answer", "What is": "a question"}
    shutil.copytree(str(below.adapter), tmp_path / "adapter")

    def planned(start: str, tokens: Any, seed: int = 0) -> Any:
        use = {**LORA, "vocabulary": {"tokens": tokens, "start": start, "seed": seed}}
        return pipeline(model, use, tmp_path / "adapter").plan(estimate=False)

    def noted(start: str, tokens: Any) -> None:
        plan = pipeline(model, {**LORA, "vocabulary": {"tokens": tokens, "start": start}}).plan(estimate=False)
        note_base(tmp_path / "adapter", plan.plugins)

    noted("description", described)
    planned("description", described)
    with pytest.raises(
        PlanError, match=r'tokens: \[\["It is", "an answer"\], .* and use\.vocabulary says .*\[\["What is"'
    ):
        planned("description", dict(reversed(described.items())))
    noted("mean", ["It is"])
    planned("mean", ["It is"], seed=1)
    noted("noise", ["It is"])
    with pytest.raises(PlanError, match=r"seed: 0\), and use\.vocabulary says .*seed: 1"):
        planned("noise", ["It is"], seed=1)


@pytest.mark.parametrize(
    ("changed", "other", "what"),
    [
        (TOKENS, {"vocabulary": {"tokens": ["It is"]}}, 'vocabulary had changed (special_tokens: ["<|shop|>"], tokens'),
        (YARN, {"rope": {"scaling": "linear", "length": 8192}}, 'rope had changed (scaling: "yarn", length: 8192)'),
    ],
    ids=["vocabulary", "rope"],
)
def test_an_adapter_is_put_on_the_base_it_was_trained_on_and_on_no_other(
    model: str, below: tk.Run, folder: Path, changed: Any, other: Any, what: str, tmp_path: Path
) -> None:
    (name,) = changed
    run = pipeline(model, {**LORA, **changed}).run(tmp_path / "run")
    plain = refused(model, LORA, run)
    assert f"stages.0.sft.adapter.start: {run.adapter} was trained on a base that {what}" in plain
    assert f"and it is not in use; add use.{name} as it was" in plain
    assert f", and use.{name} says " in refused(model, {**LORA, **other}, run)
    assert f"use.stack.adapter: {run.adapter} was trained on a base that" in refused(model, stacked(run), None)
    again = pipeline(model, {**LORA, **changed}, run).run(tmp_path / "again")
    assert losses(again)[0] < losses(run)[0]
    session = tk.Session(model, {"precision": {"compute": "fp32"}, **LORA})
    with pytest.raises(TunekitError, match=rf"was trained on a base that {name} had changed .* and it is not in use"):
        session.add("other", str(run.folder))
    session = tk.Session(model, {"precision": {"compute": "fp32"}, **LORA, **changed})
    session.add("own", str(run.folder))
    assert session.perplexity(TEXTS) == run.perplexity(TEXTS)


def test_a_plain_adapter_is_put_below_new_tokens_and_longer_positions(
    model: str, below: tk.Run, tmp_path: Path
) -> None:
    """What is said of the tokens that it knows stays what it was; the fresh one trains the rows of the others."""
    ids, known = torch.arange(20)[None], 400
    grown = tk.open_model(model, {"precision": {"compute": "fp32"}, **stacked(below), **TOKENS}).bundle.model
    said, expected = (each(ids).logits[..., :known] for each in (grown, below.bundle.model))
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)
    for changed in (TOKENS, YARN):
        run = pipeline(model, {**stacked(below), **changed}).run(tmp_path / next(iter(changed)))
        assert tk.open_run(run.folder).perplexity(TEXTS) == run.perplexity(TEXTS)


def test_an_adapter_of_a_whole_head_is_not_put_below_new_tokens(model: str, below: tk.Run, tmp_path: Path) -> None:
    """It would take the place of what their rows begin as."""
    start = tmp_path / "whole"
    shutil.copytree(str(below.adapter), start)
    weights, head = load_file(start / "adapter_model.safetensors"), below.bundle.model.get_output_embeddings().weight
    save_file({**weights, "base_model.model.lm_head.weight": head.detach()}, start / "adapter_model.safetensors")
    on_top = {**LORA, "stack": {"adapter": str(start)}}
    wrong = f"use.stack.adapter: {start} changes all rows of lm_head, and vocabulary adds some; export it as `merged"
    assert wrong in refused(model, {**on_top, **TOKENS}, None)
    pipeline(model, {**on_top, **YARN}).plan()


def test_a_plain_adapter_goes_on_with_longer_positions_and_not_with_new_tokens(
    model: str, below: tk.Run, tmp_path: Path
) -> None:
    """Of these it holds no rows. A session, which trains nothing, takes it with neither."""
    run = pipeline(model, {**LORA, **YARN}, below).run(tmp_path / "run")
    fresh = pipeline(model, {**LORA, **YARN}).run(tmp_path / "fresh")
    assert losses(run)[0] < losses(fresh)[0]
    assert tk.open_run(run.folder).perplexity(TEXTS) == run.perplexity(TEXTS)
    assert "on a base that rope had changed" in refused(model, LORA, run)
    shorter = {**LORA, "rope": {"scaling": "none"}}
    for use in ({**LORA, **TOKENS}, {**LORA, "vocabulary": {"tokens": ["It is"], "train": False}}, shorter):
        assert f"{below.adapter} was trained on the base without {list(use)[-1]}; leave" in refused(model, use, below)
    session = tk.Session(model, {"precision": {"compute": "fp32"}, **LORA, **YARN})
    with pytest.raises(TunekitError, match="was trained on the base without rope"):
        session.add("below", str(below.folder))


# As a judge of answers on the policy's base.


def judged(model: str, use: Any, reward: tk.Run) -> tk.Pipeline:
    """Of a policy whose answers a reward adapter values."""
    use, options = {"precision": {"compute": "fp32"}, **LORA, **use}, {"reward": {"adapter": str(reward.adapter)}}
    return tk.Pipeline(model, TALKS, use, [{"ppo": options}])


def test_a_reward_adapter_values_on_the_base_it_was_trained_on_and_on_no_other(
    model: str, below: tk.Run, top: tk.Run
) -> None:
    """Whether it has the head that values is seen later."""
    on_top = stacked(below)
    for use, reward, what in (
        (YARN, below, "was trained on the base without rope; leave rope out"),
        (TOKENS, below, "was trained on the base without vocabulary; leave vocabulary out"),
        (on_top, below, "was trained on the model alone; leave stack out"),
        ({}, top, "was trained on top of another adapter, and use.stack adds none; set use.stack.adapter: "),
    ):
        with pytest.raises(PlanError) as caught:
            judged(model, use, reward).plan(estimate=False)
        assert f"stages.0.ppo.reward.adapter: {reward.adapter} {what}" in str(caught.value)
    for use, reward in (({}, below), (on_top, top)):
        judged(model, use, reward).plan(estimate=False)


# As what it was saved.


@pytest.fixture(scope="module")
def wide(model: str, folder: Path) -> tk.Run:
    """A LoRA whose options are no defaults."""
    return pipeline(model, {"lora": {"rank": 16, "dropout": 0.25}}).run(folder / "wide")


@pytest.fixture(scope="module")
def measured(model: str, folder: Path) -> tk.Run:
    """A DoRA."""
    return pipeline(model, {**LORA, "dora": {}}).run(folder / "measured")


@pytest.fixture(scope="module")
def turned(model: str, folder: Path) -> tk.Run:
    """Rotations of small blocks."""
    return pipeline(model, {"oft": {"block_size": 16}}).run(folder / "turned")


@pytest.fixture(scope="module")
def vera(model: str, folder: Path) -> tk.Run:
    use = {"peft": {"method": "vera", "targets": ["q_proj", "v_proj"], "options": {"r": 16}}}
    return pipeline(model, use).run(folder / "vera")


def trained(run: tk.Run) -> int:
    return sum(each.numel() for each in run.bundle.model.parameters() if each.requires_grad)


@pytest.mark.parametrize(
    ("saved", "use"),
    [
        ("wide", {"lora": {}}),
        ("measured", {"lora": {}}),
        ("turned", {"oft": {}}),
        ("vera", {"peft": {"method": "vera"}}),
    ],
)
def test_a_plan_counts_the_adapter_that_a_run_begins_with(
    request: pytest.FixtureRequest, model: str, saved: str, use: Any
) -> None:
    """Of the saved rank, lengths, blocks and targets, which the recipe leaves out; in later stages too."""
    run = request.getfixturevalue(saved)
    estimate = pipeline(model, use, run, stages=2).plan().estimate
    assert estimate is not None
    counted = [sum(part.parameters for part in parts) for parts in estimate.trained.values()]
    assert counted == [trained(run)] * 2
    assert estimate.trainable == trained(run)


@pytest.mark.parametrize(
    ("saved", "use", "what"),
    [
        ("below", {"lora": {"dropout": 0.5}}, "was trained with dropout 0.0, and use.lora.dropout is 0.5"),
        ("turned", {"oft": {"block_size": 32}}, "with oft_block_size 16, and use.oft.block_size makes it 32"),
        ("turned", {"oft": {"exact": True}}, "with use_cayley_neumann True, and use.oft.exact makes it False"),
        ("turned", {"oft": {"limit": 0.1}}, "was trained with coft False, and use.oft.limit makes it True"),
        ("turned", {"oft": {"targets": ["q_proj"]}}, "use.oft.targets: model.layers.0.mlp.down_proj is adapted there"),
        ("turned", {"oft": {"modules_to_save": ["lm_head"]}}, "with modules_to_save None, and use.oft.modules_to_save"),
        ("vera", {"peft": {"method": "vera", "options": {"r": 32}}},
         "was trained with r 16, and use.peft.options.r makes it 32"),
        ("vera", {"peft": {"method": "vera", "targets": "all-linear"}}, "is for other layers than use.peft.targets"),
        ("vera", {"lora": {}}, "holds no LoRA adapter in PEFT's format"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_what_was_saved_is_refused(
    request: pytest.FixtureRequest, model: str, saved: str, use: Any, what: str
) -> None:
    run = request.getfixturevalue(saved)
    said = refused(model, use, run)
    assert f"stages.0.sft.adapter.start: {run.adapter} " in said
    assert what in said


def test_what_was_saved_may_be_said_again(model: str, wide: tk.Run, turned: tk.Run, vera: tk.Run) -> None:
    for run in (wide, turned, vera):
        use = {each.name: dict(each.options) for each in run.record.recipe.use}
        pipeline(model, use, run).plan()


MAKERS: dict[str, dict[str, Any]] = {"vocabulary": {"tokens": ["It is"]}}
"""Options of plugins that change what LoRA makes."""


def changing() -> list[str]:
    catalog = Catalog.discover()
    return sorted(name for name in catalog.names if "tunekit_lora_config" in hooks_of(catalog.load(name)))


def test_how_one_adapter_begins_is_said_in_the_stage_that_trains_it(model: str, below: tk.Run) -> None:
    use = {"precision": {"compute": "fp32"}, **LORA}
    stages: list[dict[str, Any]] = [
        {"sft": {**SFT, "adapter": {"name": "saved", "start": str(below.adapter)}}},
        {"sft": {**SFT, "adapter": "fresh"}},
    ]
    with pytest.raises(PlanError, match=r"leave gaussian or start out, or name gaussian in stages\.1\.sft\.use alone"):
        tk.Pipeline(model, TALKS, {**use, "gaussian": {}}, stages).plan(estimate=False)
    stages[1]["sft"]["use"] = {"gaussian": {}}
    tk.Pipeline(model, TALKS, use, stages).plan(estimate=False)


def test_a_fresh_dora_does_not_look_at_the_folder_it_is_started_in(
    model: str, below: tk.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(below.adapter))
    pipeline(model, {**LORA, "dora": {}}).plan(estimate=False)


def test_every_plugin_that_changes_what_lora_makes_refuses_an_adapter_that_is_made_already(
    model: str, below: tk.Run, tmp_path: Path
) -> None:
    """It is not asked for a saved one, and would do nothing. A start that has no note of its base is seen as well."""
    assert set(changing()) >= {"dora", "gaussian", "orthogonal", "pissa", "vocabulary"}
    start = tmp_path / "adapter"
    shutil.copytree(str(below.adapter), start)
    (start / "tunekit_base.json").unlink()
    for name in changing():
        assert "stages.0.sft.adapter.start: " in refused(model, {**LORA, name: MAKERS.get(name, {})}, start)
