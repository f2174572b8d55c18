"""Supervised fine-tuning, from examples to a trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.errors import DataError
from tunekit.values import Event, Example, Examples, Message, StageResult
from tunekit_sft import Sft
from tunekit_train import Batch, Forward, Provided
from tunekit_train.layout import lay_padded
from tunekit_train.testing import bundle, context, tiny_llama, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def conversations(count: int) -> Examples:
    made = tuple(
        Example(
            row,
            f"rows.json, row {row}",
            (
                Message("user", f"t{10 + row} t11"),
                Message("assistant", "t20 t21"),
                Message("user", "t12"),
                Message("assistant", f"t30 t{30 + row % 3}"),
            ),
        )
        for row in range(1, count + 1)
    )
    return Examples.of(made)


def train(stage: Sft, data: Examples, folder: Path, events: list[Event] | None = None) -> StageResult:
    """What a run does: prepare the data, stop on problems, train."""
    made = prepared_bundle()
    surroundings = context(folder, events)
    prepared = stage.tunekit_prepare_data(data, made.tokenizer, surroundings)
    prepared.account.stop_on_problems()
    return stage.tunekit_train_stage(made, prepared, surroundings)


def prepared_bundle() -> Any:
    made = bundle(tiny_llama())
    made.tokenizer.chat_template = TEMPLATE
    return made


def supervised(rule: str) -> list[int]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prepared = Sft(supervise=rule).tunekit_prepare_data(conversations(1), tokenizer, context(Path()))
    ((sequence,),) = (item.sequences for item in prepared)
    return [int(token) for token, weight in zip(sequence.ids, sequence.weights, strict=True) if weight]


def test_supervise_says_which_turns_have_a_loss() -> None:
    end = 2
    assert supervised("last") == [30, 31, end]
    assert supervised("assistant") == [20, 21, end, 30, 31, end]
    assert len(supervised("all")) > len(supervised("assistant"))


def test_training_lowers_the_loss_and_tells_perplexity(tmp_path: Path) -> None:
    events: list[Event] = []
    stage = Sft(epochs=20, learning_rate=1e-2, evaluate={"share": 0.2})
    result = train(stage, conversations(20), tmp_path, events)
    metrics = result.metrics
    assert metrics["train_loss_last"] < 0.3 * metrics["train_loss_first"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    evaluated = [event for event in events if event.kind == "evaluated"]
    assert evaluated[-1].metrics == {name: metrics[name] for name in ("eval_loss", "perplexity")}


def test_the_chat_template_is_saved_with_the_model(tmp_path: Path) -> None:
    train(Sft(steps=1), conversations(4), tmp_path)
    assert TEMPLATE in (tmp_path / "model" / "chat_template.jinja").read_text()


def test_conversations_without_an_answer_are_refused_all_at_once(tmp_path: Path) -> None:
    asked = tuple(Example(row, f"rows.json, row {row}", (Message("user", "t5"),)) for row in (3, 8))
    with pytest.raises(DataError, match=r"(?s)rows.json, row 3.*rows.json, row 8"):
        train(Sft(), Examples.of(asked), tmp_path)


def test_every_label_masked_is_refused(tmp_path: Path) -> None:
    masked = (Example(1, "rows.json, row 1", (Message("user", "t5"), Message("assistant", "t6", weight=0.0))),)
    with pytest.raises(DataError, match=r"rows\.json, row 1"):
        train(Sft(), Examples.of(masked), tmp_path)


def test_sequences_past_the_limit_are_cut_and_counted(tmp_path: Path) -> None:
    data = conversations(5)
    train(Sft(steps=1, batch={"max_length": 14}), data, tmp_path)
    (account,) = data.account.sources.values()
    assert (account.cut.count, account.cut.where[0]) == (5, "rows.json, row 1")
    assert account.tokens_cut > 0


def test_pairs_of_answers_are_refused_at_the_first_row(tmp_path: Path) -> None:
    pair = Example(4, "rows.json, row 4", (Message("user", "t5"),), chosen=(Message("assistant", "t6"),),
                   rejected=(Message("assistant", "t7"),))  # fmt: skip
    with pytest.raises(DataError, match=r"rows.json, row 4: is a pair of .*sft trains on a conversation or a document"):
        train(Sft(), Examples.of([pair]), tmp_path)


def test_a_messages_weight_scales_the_loss_of_its_turn() -> None:
    """The loss is sum(w l) / sum(w) over the tokens of the turns, each by its message's weight."""
    turns = (("user", "t10 t11", None), ("assistant", "t20 t21", 2.0), ("user", "t12", 0.25), ("assistant", "t30", 0.0))
    talk = Example(1, "rows.json, row 1", tuple(Message(role, text, weight) for role, text, weight in turns))
    made, stage = prepared_bundle(), Sft()
    (item,) = stage.tunekit_prepare_data(Examples.of([talk]), made.tokenizer, context(Path()))
    (sequence,) = item.sequences
    by_hand = {20: 2.0, 21: 2.0, 12: 0.25}
    with torch.no_grad():
        log_probs = made.model(input_ids=torch.tensor([list(map(int, sequence.ids))])).logits[0].log_softmax(-1)
        objective, batch = stage.objective(), Batch((item,))
        layout = lay_padded(batch.sequences, 0)
        provided = {need: need.provide(Forward(made.model, batch, layout)) for need in objective.needs}
        found = objective.sums(batch, Provided(provided)).loss / objective.weight(batch)
    ids = list(map(int, sequence.ids))
    pairs = [(by_hand[token], -float(log_probs[at - 1, token])) for at, token in enumerate(ids) if token in by_hand]
    ends = [at for at, token in enumerate(ids) if token == 2]
    pairs += [(weight, -float(log_probs[ends[turn] - 1, 2])) for turn, weight in ((1, 2.0), (2, 0.25))]
    assert float(found) == pytest.approx(sum(w * loss for w, loss in pairs) / sum(w for w, _ in pairs), rel=1e-5)


def test_a_turn_of_weight_0_is_not_learnt(tmp_path: Path) -> None:
    def learnt(weight: float | None) -> list[float]:
        """-log p of both answers after training, the first weighted."""
        talk = (Message("user", "t10"), Message("assistant", "t20", weight), Message("user", "t11"),
                Message("assistant", "t30"))  # fmt: skip
        data = Examples.of(Example(row, f"rows.json, row {row}", talk) for row in range(1, 9))
        model = train(Sft(steps=40, learning_rate=1e-2), data, tmp_path / str(weight)).bundle.model
        tokenizer = prepared_bundle().tokenizer
        ids = tokenizer(tokenizer.apply_chat_template(
            [{"role": each.role, "content": each.content} for each in talk], tokenize=False),
            add_special_tokens=False)["input_ids"]  # fmt: skip
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return [-float(log_probs[ids.index(token) - 1, token]) for token in (20, 30)]

    both, second = learnt(None), learnt(0.0)
    assert max(both) < 1.0
    assert second[1] < 1.0
    assert second[0] > 3.0
