"""Options that act where examples become tokens, on chance, and on how PyTorch computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.testing.options import shows
from tunekit.values import Example, Examples, Message, StageResult
from tunekit_train import Batch, ConversationConfig, Objective, Provided, Stage, Sums
from tunekit_train.determinism import CUBLAS
from tunekit_train.encoding.testing import byte_tokenizer, talk
from tunekit_train.testing import CrossEntropy, bundle, context, tiny_llama, with_lora
from tunekit_train.trackers import TRACKERS, tracker_problems


class Plain(Stage[ConversationConfig]):
    """A stage with nothing of its own."""

    def objective(self) -> Objective:
        return CrossEntropy()


def train_on(examples: list[Example], folder: Path, **options: Any) -> StageResult:
    """Encode and train as a recipe would, on a model of the byte tokenizer."""
    batch = {"rows": 100, **options.pop("batch", {})}
    stage, tokenizer = Plain(steps=1, batch=batch, **options), byte_tokenizer()
    folder.mkdir()
    prepared = stage.tunekit_prepare_data(Examples.of(examples, ""), tokenizer, context(folder))
    made = bundle(tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512))
    return stage.tunekit_train_stage(made, prepared, context(folder))


@shows("batch.max_length", "batch.too_long")
def test_what_is_too_long_is_cut_dropped_or_split_before_it_is_trained_on(tmp_path: Path) -> None:
    texts = ["a" * 10, "b" * 40, "c" * 25]
    examples = [Example(row, f"rows, row {row}", text=text, source="rows") for row, text in enumerate(texts, 1)]

    def tokens(**batch: Any) -> list[int]:
        facts = train_on(examples, tmp_path / str(len(list(tmp_path.iterdir()))), batch=batch).facts
        return [facts["items_trained_on"], facts["tokens"]]

    whole = tokens()
    extra = (whole[1] - 75) // 3  # the end token of each
    assert whole == [3, 75 + 3 * extra]
    assert tokens(max_length=20) == [3, 10 + extra + 20 + 20]
    assert tokens(max_length=20, too_long="drop") == [1, 10 + extra]
    pieces = tokens(max_length=20, too_long="split")
    assert pieces[0] > 3
    assert pieces[1] >= whole[1]


@shows("thinking")
def test_thinking_is_trained_shown_or_left_out(tmp_path: Path) -> None:
    thoughts = [Message("assistant", "one", thinking="hm"), Message("assistant", "two", thinking="ah")]
    example = talk(("user", "q"), thoughts[0], ("user", "r"), thoughts[1])
    found = {}
    for rule in ("keep", "last", "drop", "mask"):
        facts = train_on([example], tmp_path / rule, thinking=rule).facts
        found[rule] = (facts["tokens"], round(facts["supervised_share"] * facts["tokens"]))
    thought = len("<think>\nhm\n</think>\n\n")
    tokens, supervised = found["keep"]
    assert found["last"] == (tokens - thought, supervised - thought)
    assert found["drop"] == (tokens - 2 * thought, supervised - 2 * thought)
    assert found["mask"] == (tokens, supervised - 2 * thought)


@shows("seed")
def test_a_stage_may_have_a_seed_of_its_own(run_training: Any) -> None:
    own, of_the_run, other = run_training(seed=3), run_training(), run_training(seed=4)
    same = run_training(config_seed=3)
    assert own.values("loss") == same.values("loss") != of_the_run.values("loss")
    assert other.values("loss") != own.values("loss")


class Doubles(torch.nn.Module):
    """An activation that is twice as large when it is compiled, or always."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.silu(inputs)
        return 2 * found if self.always or torch.compiler.is_compiling() else found


def with_doubling(always: bool, adapter: bool) -> tuple[Any, list[str]]:
    """A model whose numbers tell whether its blocks are compiled, and what the backward of a block is called."""
    base, seen = tiny_llama(), []
    for layer in base.model.layers:
        layer.mlp.act_fn = Doubles(always)
    base.model.layers[0].register_forward_hook(lambda *given: seen.append(type(given[2].grad_fn).__name__))
    return (with_lora(base) if adapter else base), seen


TRACED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""A warning that torch.compile provokes, and hides from users but not from a filter that makes errors of warnings."""


@TRACED
@shows("compute.compile", "compute.compile_backend", "compute.lora_product")
@pytest.mark.parametrize("padding", ["auto", pytest.param("always", marks=pytest.mark.slow)])
def test_compiled_blocks_take_the_same_steps(padding: str, run_training: Any) -> None:
    options = {"steps": 3, "learning_rate": 1e-2, "batch": {"padding": padding}}
    model, _ = with_doubling(True, adapter=True)
    eager = run_training(model, **options)
    model, seen = with_doubling(False, adapter=True)
    compute = {"compile": True, "compile_backend": "aot_eager"}
    compiled = run_training(model, compute=compute, **options)
    assert compiled.values("loss") == pytest.approx(eager.values("loss"), rel=1e-5)
    assert set(seen) == {"CompiledFunctionBackward"}
    assert compiled.result.facts["compiled_blocks"] == 2
    assert compiled.result.facts["lora_product_left"] == {"compute.compile traces PEFT's own": 14}
    assert eager.result.facts["lora_product_layers"] == 14
    assert not any("forward" in vars(layer) for layer in model.get_base_model().model.layers)


@TRACED
def test_the_eager_backend_compiles_nothing_ahead(run_training: Any) -> None:
    model, seen = with_doubling(False, adapter=False)
    run_training(model, steps=1, compute={"compile": True, "compile_backend": "eager"})
    assert "CompiledFunctionBackward" not in seen


class Looks(CrossEntropy):
    """Looks how PyTorch is set: memory that nobody has written is filled with no numbers under determinism."""

    def __init__(self) -> None:
        self.filled: list[bool] = []

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.filled.append(bool(torch.empty(1000).isnan().all()))
        return super().sums(batch, provided)


@shows("compute.deterministic")
def test_deterministic_algorithms_are_used_for_the_stage_and_no_longer(run_training: Any) -> None:
    plain, strict = Looks(), Looks()
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get(CUBLAS))
    without = run_training(objective=plain, steps=2)
    within = run_training(objective=strict, steps=2, compute={"deterministic": True})
    assert (plain.filled, strict.filled) == ([False, False], [True, True])
    assert within.values("loss") == without.values("loss")
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get(CUBLAS)) == before


def test_the_trackers_are_those_that_transformers_feeds() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)


def test_swanlab_on_this_machine_alone_needs_its_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit_train.trackers.find_spec", lambda package: None if package == "swanboard" else package)
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    assert not list(tracker_problems(("swanlab",), "stages.0.sft"))
    monkeypatch.setenv("SWANLAB_MODE", "local")
    (found,) = tracker_problems(("swanlab",), "stages.0.sft")
    assert str(found) == (
        "stages.0.sft.log.trackers: swanlab needs swanboard, not installed; `pip install 'swanlab[dashboard]'`"
    )
