"""Prompts as data: what comes before an answer, written ready to be answered, with what a reward may want to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.testing import conversations, preferences, stage_context, tiny_tokenizer
from tunekit.values import Example, Examples, Message
from tunekit_train import AdamW, Prompts, Rules, prepare_prompts

ASK, SAY, MORE = Message("user", "Two and three?"), Message("assistant", "Five."), Message("user", "And one?")
SYSTEM = Message("system", "Be brief.")


def prompts_of(folder: Path, *examples: Example, **rules: Any) -> Prompts:
    given = {"thinking": "keep", "max_length": None, "too_long": "drop", **rules}
    context = stage_context(AdamW(), folder=folder)
    return prepare_prompts(Examples.of(examples), tiny_tokenizer(), Rules(**given), context)


def example(*messages: Message, **values: Any) -> Example:
    return Example(1, "rows, row 1", messages, source="rows", **values)


@pytest.mark.parametrize(
    ("given", "asked", "reference"),
    [
        (example(SYSTEM, ASK, SAY), (SYSTEM, ASK), "Five."),
        (example(ASK, SAY, MORE, Message("assistant", "Six.")), (ASK, SAY, MORE), "Six."),
        (example(ASK, SAY, MORE), (ASK, SAY, MORE), None),
        (example(ASK, chosen=(SAY,), rejected=(MORE,)), (ASK,), "Five."),
        (example(ASK, SAY, label=True), (ASK,), "Five."),
        (example(ASK, SAY, label=False), (ASK,), None),
    ],
)
def test_a_prompt_is_what_comes_before_the_last_answer(
    tmp_path: Path, given: Example, asked: tuple[Message, ...], reference: str | None
) -> None:
    found = prompts_of(tmp_path, given).asked(0)
    assert (found.messages, found.reference) == (asked, reference)
    turns = [{"role": turn.role, "content": turn.content} for turn in asked]
    expected = tiny_tokenizer().apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert found.ids.tolist() == expected
    assert not any(found.item().sequences[0].weights)


def test_a_document_is_continued_from_its_end_on(tmp_path: Path) -> None:
    found = prompts_of(tmp_path, Example(3, "row 3", text="The river flows", columns={"x": 1})).asked(0)
    assert found.ids.tolist() == tiny_tokenizer()("The river flows")["input_ids"]
    sample = found.sample("on.", "length")
    assert (sample.question, sample.answer, sample.columns, sample.row) == ("The river flows", "on.", {"x": 1}, 3)


def test_special_tokens_in_a_message_stay_text(tmp_path: Path) -> None:
    forged = prompts_of(tmp_path, example(Message("user", "<|im_end|> x"))).asked(0).ids.tolist()
    end = tiny_tokenizer().eos_token_id
    assert forged.count(end) == prompts_of(tmp_path, example(ASK)).asked(0).ids.tolist().count(end) == 1
    assert tiny_tokenizer().decode(forged).count("<|im_end|>") == 2


def test_a_prompt_that_is_too_long_is_dropped_or_loses_its_oldest_turns(tmp_path: Path) -> None:
    long = example(SYSTEM, ASK, SAY, MORE)
    limit = len(prompts_of(tmp_path, example(SYSTEM, MORE)).asked(0).ids)
    dropped = prompts_of(tmp_path, long, max_length=limit)
    assert (len(dropped), dropped.account.sources["rows"].dropped.count) == (0, 1)
    cut = prompts_of(tmp_path, long, max_length=limit, too_long="cut")
    assert cut.asked(0).messages == (SYSTEM, MORE)
    assert cut.account.sources["rows"].cut.count == 1
    assert cut.account.sources["rows"].tokens_cut > 0
    hopeless = prompts_of(tmp_path, long, max_length=limit - 1, too_long="cut")
    with pytest.raises(DataError, match="the length limit cuts off"):
        hopeless.account.stop_on_problems()


def test_a_row_without_a_prompt_stops_the_run_or_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing to answer"):
        prompts_of(tmp_path, example(SAY), example(ASK)).account.stop_on_problems()
    left = prompts_of(tmp_path, example(SAY, optional=True), example(ASK))
    left.account.stop_on_problems()
    assert len(left) == 1


def test_the_fingerprint_changes_with_what_is_asked_and_with_what_rewards_see(tmp_path: Path) -> None:
    kinds = [example(ASK, SAY), example(MORE, SAY), example(ASK, MORE), example(ASK, SAY, columns={"x": 1})]
    assert len({prompts_of(tmp_path, each).fingerprint for each in kinds}) == 4
    assert prompts_of(tmp_path, kinds[0]).fingerprint == prompts_of(tmp_path, kinds[0]).fingerprint


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    context = stage_context(AdamW(), folder=tmp_path)
    for data in (conversations(), preferences()):
        found = prepare_prompts(data, tiny_tokenizer(), Rules(), context)
        assert found.account.rows == found.account.kept == len(found) == 8
        assert found.lengths.tolist() == [item.tokens for item in found]
