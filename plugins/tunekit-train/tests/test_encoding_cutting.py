"""What is too long: never above the limit, no header lost, no cut answer trained as if it had ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekit.errors import DataError
from tunekit.values import Account, Example, Message, TokenSequence
from tunekit_train.encoding import Encoder, Rules
from tunekit_train.encoding.cutting import blocks, level, shorten
from tunekit_train.encoding.exchanges import Exchanges
from tunekit_train.encoding.testing import byte_tokenizer, encode, sequence, talk, trained

HEADER = "<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per byte, ChatML."""
    return byte_tokenizer()


def _text(found: TokenSequence, tokenizer: Any) -> str:
    return str(tokenizer.decode(list(found.ids)))


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_what_lies_beyond_the_limit_goes_from_the_right_and_the_end_token_with_it(tokenizer: Any) -> None:
    example = talk(("user", "hi"), ("assistant", "Hello."), ("user", "so?"), ("assistant", "Well, fine."))
    whole = sequence(example, tokenizer)
    found = sequence(example, tokenizer, max_length=len(whole.ids) - 5)
    assert found.ids.tolist() == whole.ids[:-5].tolist()  # type: ignore[attr-defined]
    assert found.weights.tolist() == whole.weights[:-5].tolist()  # type: ignore[attr-defined]
    assert found.cut == 5
    assert trained(found, tokenizer)[-1] == "Well, fi"


def test_a_sequence_that_was_cut_ends_with_its_last_trained_token(tokenizer: Any) -> None:
    example = talk(("user", "hi"), ("assistant", "Hello."), ("user", "a long question"), ("assistant", "no"))
    whole = sequence(example, tokenizer)
    found = sequence(example, tokenizer, max_length=len(whole.ids) - 8)
    assert _text(found, tokenizer).endswith("Hello.<|im_end|>")
    assert found.cut == len(whole.ids) - len(found.ids)


def test_the_longest_content_of_a_prompt_loses_its_middle_and_the_answer_stays_whole(tokenizer: Any) -> None:
    example = talk(("system", "Be kind."), ("user", "A" * 100 + "B" * 100), ("assistant", "Yes, I will."))
    length = len(sequence(example, tokenizer).ids)
    found = sequence(example, tokenizer, max_length=length - 150)
    assert trained(found, tokenizer) == ["Yes, I will.<|im_end|>"]
    text = _text(found, tokenizer)
    assert "<|im_start|>system\nBe kind.<|im_end|>" in text, "the shorter content is whole"
    assert f"user\n{'A' * 26}{'B' * 25}<|im_end|>\n{HEADER}" in text


def test_an_answer_longer_than_half_the_room_keeps_half_and_has_no_end(tokenizer: Any) -> None:
    example = talk(("user", "q" * 300), ("assistant", "a" * 300))
    structure = len(_ids("<|im_start|>user\n<|im_end|>\n" + HEADER, tokenizer))
    found = sequence(example, tokenizer, max_length=structure + 200)
    assert _text(found, tokenizer) == f"<|im_start|>user\n{'q' * 100}<|im_end|>\n{HEADER}{'a' * 100}"
    assert trained(found, tokenizer) == ["a" * 100]


def test_an_answer_may_use_what_a_short_prompt_does_not_need(tokenizer: Any) -> None:
    example = talk(("user", "q" * 10), ("assistant", "a" * 300))
    structure = len(_ids("<|im_start|>user\n<|im_end|>\n" + HEADER, tokenizer))
    found = sequence(example, tokenizer, max_length=structure + 200)
    assert _text(found, tokenizer).count("q") == 10
    assert trained(found, tokenizer) == ["a" * 190]


def test_with_last_whole_oldest_exchanges_go_first_and_the_system_turn_stays(tokenizer: Any) -> None:
    turns = [(role, f"{role}{number}") for number in range(5) for role in ("user", "assistant")]
    example = talk(("system", "S"), *turns)
    short = talk(("system", "S"), *turns[6:])
    limit = len(sequence(short, tokenizer).ids) + 3
    found = sequence(example, tokenizer, supervise="last", max_length=limit)
    assert found.ids.tolist() == sequence(short, tokenizer).ids.tolist()  # type: ignore[attr-defined]
    assert trained(found, tokenizer) == ["assistant4<|im_end|>"]
    labelled = sequence(replace(example, label=True), tokenizer, max_length=limit)
    assert labelled.ids.tolist() == found.ids.tolist()  # type: ignore[attr-defined]


def test_a_limit_below_the_structure_leaves_the_row_out_and_says_what_length_would_do(tokenizer: Any) -> None:
    example = talk(("user", "q"), ("assistant", "a"))
    length = len(sequence(example, tokenizer).ids)
    with pytest.raises(DataError, match=f"cuts off all that would be trained; max_length is 9 .* choose {length}"):
        sequence(example, tokenizer, max_length=9)


def test_masked_thinking_alone_is_no_answer(tokenizer: Any) -> None:
    example = talk(("user", "q"), Message("assistant", "a", thinking="t" * 200))
    with pytest.raises(DataError, match="cuts off all that would be trained"):
        sequence(example, tokenizer, thinking="mask", max_length=100)


def test_a_row_that_is_too_long_is_dropped_where_that_is_asked_for(tokenizer: Any) -> None:
    pair = Example(
        1, "p", (Message("user", "q"),), chosen=(Message("assistant", "a" * 90),), rejected=(Message("assistant", "b"),)
    )
    for example in (talk(("user", "q"), ("assistant", "a" * 90)), pair, Example(1, "d", text="t" * 90)):
        items, account = encode(example, tokenizer, max_length=60, too_long="drop")
        source = account.source("")
        assert (items, source.dropped.count, source.sequences, source.kept) == ([], 1, 0, 0)
        _, whole = encode(example, tokenizer)
        assert source.lengths == whole.source("").lengths, "a histogram shows what was too long"
        items, _ = encode(example, tokenizer, max_length=150, too_long="drop")
        assert len(items) == 1


def test_a_document_is_split_into_blocks_that_predict_every_token_once(tokenizer: Any) -> None:
    items, account = encode(Example(1, "d", text="abcdefghij" * 5), tokenizer, max_length=16, too_long="split")
    parts = [item.sequences[0].ids.tolist() for item in items]  # type: ignore[attr-defined]
    joined = parts[0] + [token for part in parts[1:] for token in part[1:]]
    assert tokenizer.decode(joined) == "abcdefghij" * 5 + "</s>"
    assert max(map(len, parts)) == 16
    assert account.source("").split.count == 1
    assert account.source("").lengths == {51: 1}
    assert account.source("").supervised == 50


def test_a_document_is_cut_from_the_right(tokenizer: Any) -> None:
    found = sequence(Example(1, "d", text="abcdef"), tokenizer, max_length=4)
    assert (tokenizer.decode(found.ids), found.cut) == ("abcd", 3)


def test_a_conversation_is_split_at_its_exchanges_with_the_system_turn_in_each(tokenizer: Any) -> None:
    turns = [(role, f"{role}{number}") for number in range(6) for role in ("user", "assistant")]
    example = talk(("system", "S"), *turns)
    limit = len(sequence(talk(("system", "S"), *turns[:4]), tokenizer).ids)
    items, account = encode(example, tokenizer, max_length=limit, too_long="split")
    texts = [_text(item.sequences[0], tokenizer) for item in items]
    assert [text.count("<|im_start|>user") for text in texts] == [2, 2, 2]
    assert all(text.startswith("<|im_start|>system\nS<|im_end|>") for text in texts)
    assert [run for item in items for run in trained(item.sequences[0], tokenizer)] == [
        f"assistant{number}<|im_end|>" for number in range(6)
    ]
    assert (account.source("").split.count, account.source("").cut.count, account.source("").sequences) == (1, 0, 3)
    assert account.source("").lengths == {len(sequence(example, tokenizer).ids): 1}


def test_an_exchange_that_alone_is_too_long_is_cut_and_the_others_stay_whole(tokenizer: Any) -> None:
    example = talk(
        ("user", "q"), ("assistant", "a"), ("user", "q" * 200), ("assistant", "b"), ("user", "r"), ("assistant", "c")
    )
    items, account = encode(example, tokenizer, max_length=70, too_long="split")
    assert [trained(item.sequences[0], tokenizer) for item in items] == [
        ["a<|im_end|>"],
        ["b<|im_end|>"],
        ["c<|im_end|>"],
    ]
    source = account.source("")
    assert (source.split.count, source.cut.count) == (1, 1)
    assert source.tokens_cut == sum(item.sequences[0].cut for item in items) > 100


def test_parts_that_train_nothing_are_not_sequences_and_their_tokens_count_as_cut(tokenizer: Any) -> None:
    turns = [(role, f"{role}{number}") for number in range(4) for role in ("user", "assistant")]
    items, account = encode(talk(*turns), tokenizer, supervise="last", max_length=50, too_long="split")
    assert [trained(item.sequences[0], tokenizer) for item in items] == [["assistant3<|im_end|>"]]
    assert account.source("").tokens_cut > 0


def test_one_prompt_is_cut_for_both_answers_of_a_pair(tokenizer: Any) -> None:
    prompt = (Message("user", "A" * 200 + "B" * 200),)
    pair = Example(1, "p", prompt, chosen=(Message("assistant", "yes" * 20),), rejected=(Message("assistant", "no"),))
    ((item,), account) = encode(pair, tokenizer, max_length=200)
    chosen, rejected = item.sequences
    start = len(_text(chosen, tokenizer).split(HEADER)[0] + HEADER)
    assert _text(chosen, tokenizer)[:start] == _text(rejected, tokenizer)[:start]
    assert len(chosen.ids) <= 200
    assert trained(chosen, tokenizer) == ["yes" * 20 + "<|im_end|>"]
    assert trained(rejected, tokenizer) == ["no<|im_end|>"]
    assert account.source("").cut.count == 1


def test_the_oldest_exchanges_of_a_pair_go_first(tokenizer: Any) -> None:
    history = tuple(Message(role, f"{role}{number}" * 5) for number in range(4) for role in ("user", "assistant"))  # type: ignore[arg-type]
    pair = Example(
        1,
        "p",
        (*history, Message("user", "q")),
        chosen=(Message("assistant", "yes"),),
        rejected=(Message("assistant", "no"),),
    )
    ((item,), _) = encode(pair, tokenizer, max_length=150)
    texts = [_text(found, tokenizer) for found in item.sequences]
    assert all("user3" in text and "user0" not in text for text in texts)
    assert [text.split(HEADER)[-1] for text in texts] == ["yes<|im_end|>\n", "no<|im_end|>\n"]


def test_answers_that_differ_beyond_the_limit_only_are_an_error(tokenizer: Any) -> None:
    same = "a" * 100
    pair = Example(
        1,
        "p",
        (Message("user", "q"),),
        chosen=(Message("assistant", same + "x"),),
        rejected=(Message("assistant", same + "y"),),
    )
    with pytest.raises(
        DataError, match="the chosen and the rejected answer are the same; they differ beyond max_length"
    ):
        sequence(pair, tokenizer, max_length=80)


# By property.

_words = st.text(alphabet=st.sampled_from("ab é🎉\n<|"), max_size=60)


@given(
    contents=st.lists(st.tuples(_words, _words), min_size=1, max_size=4),
    system=st.none() | _words,
    limit=st.integers(1, 160),
    supervise=st.sampled_from(["assistant", "last"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cutting_keeps_the_limit_the_header_and_the_truth_about_the_end(
    tokenizer: Any, contents: list[tuple[str, str]], system: str | None, limit: int, supervise: str
) -> None:
    turns = [(role, text) for pair in contents for role, text in zip(("user", "assistant"), pair, strict=True)]
    example = talk(*([] if system is None else [("system", system)]), *turns)
    whole = sequence(example, tokenizer, supervise=supervise)
    items, account = encode(example, tokenizer, supervise=supervise, max_length=limit)
    source = account.source("")
    if not items:
        assert list(source.left_out) == ["the length limit cuts off all that would be trained"]
        return
    (found,) = items[0].sequences
    assert len(found.ids) <= limit
    assert len(found.ids) + found.cut == len(whole.ids)
    assert (source.tokens, source.tokens_cut) == (len(found.ids), found.cut)
    text = _text(found, tokenizer)
    assert "\ufffd" not in text, "no character is torn apart"
    answers = [answer for _, answer in contents][-1 if supervise == "last" else 0 :]
    runs = trained(found, tokenizer)
    assert len(runs) <= len(answers)
    for run, answer in zip(runs[:-1], answers, strict=False):
        assert run == answer + "<|im_end|>"
    full = answers[len(runs) - 1] + "<|im_end|>"
    assert full.startswith(runs[-1])
    assert runs[-1] == full or not runs[-1].endswith("<|im_end|>")
    assert HEADER + runs[-1] in text, "the header is there"
    assert text.count(HEADER) >= len(runs)
    if found.cut and runs[-1] != full:
        assert text.endswith(runs[-1]), "nothing comes behind an answer that is cut off"


@given(
    contents=st.lists(st.tuples(_words, _words), max_size=3),
    answers=st.tuples(_words, _words),
    question=_words,
    limit=st.integers(30, 160),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cutting_a_pair_keeps_one_prompt_with_its_header_and_the_truth_about_the_ends(
    tokenizer: Any, contents: list[tuple[str, str]], answers: tuple[str, str], question: str, limit: int
) -> None:
    turns = [(role, text) for pair in contents for role, text in zip(("user", "assistant"), pair, strict=True)]
    prompt = talk(*turns, ("user", question)).messages
    chosen, rejected = ((Message("assistant", answer),) for answer in answers)
    pair = Example(1, "p", prompt, chosen=chosen, rejected=rejected)
    items, account = encode(pair, tokenizer, max_length=limit)
    if not items:
        assert next(iter(account.source("").left_out)).startswith(("the chosen and the rejected", "the length limit"))
        return
    heads = []
    for found, answer in zip(items[0].sequences, answers, strict=True):
        assert len(found.ids) <= limit
        (run,) = trained(found, tokenizer)
        full = answer + "<|im_end|>"
        assert full.startswith(run)
        assert run == full or not run.endswith("<|im_end|>")
        head, _, tail = _text(found, tokenizer).rpartition(HEADER)
        assert tail.startswith(run)
        heads.append(head)
    assert heads[0] == heads[1]


@given(
    contents=st.lists(st.integers(0, 60), max_size=6),
    gaps=st.integers(1, 9),
    answer=st.integers(1, 200),
    limit=st.integers(1, 300),
)
def test_a_prompt_is_shortened_by_what_the_policy_says(contents: list[int], gaps: int, answer: int, limit: int) -> None:
    spans, place = [], gaps
    for length in contents:
        spans.append((place, place + length))
        place += length + gaps
    structure = place - sum(contents)
    kept = shorten(place, spans, answer, limit, np.ones(place, dtype=bool))
    outside = [index for index in range(place) if not any(first <= index < last for first, last in spans)]
    assert set(outside) <= set(kept.tolist()), "structure stays"
    room = max(0, limit - structure)
    left = room - (len(kept) - structure)
    assert len(kept) - structure <= room
    assert min(answer, left) >= min(answer, room / 2), "the answer gets half the room, or is whole"
    assert len(kept) == place or left <= max(answer, (room + 1) // 2), "no more is taken than is needed"
    shortened = [sum(1 for index in kept if first <= index < last) for first, last in spans]
    for length, now in zip(contents, shortened, strict=True):
        assert now == length or now >= max(shortened) - 1, "only the longest are shortened"


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=8), total=st.integers(0, 200))
def test_levelling_reaches_its_total_and_never_makes_longer(lengths: list[int], total: int) -> None:
    found = level(lengths, total)
    assert all(0 <= now <= before for now, before in zip(found, lengths, strict=True))
    assert sum(found) == min(total, sum(lengths))


@given(count=st.integers(2, 200), limit=st.integers(2, 40))
def test_blocks_are_whole_and_predict_all(count: int, limit: int) -> None:
    found = list(blocks(np.arange(count, dtype=np.int32), limit))
    assert all(2 <= len(block) <= limit for block in found)
    assert [token for block in found for token in block[1:].tolist()] == list(range(1, count))


def test_exchanges_begin_with_the_user_and_keep_their_tool_results() -> None:
    roles = ("system", "user", "user", "assistant", "tool", "assistant", "user", "assistant")
    found = Exchanges.of(tuple(Message(role, "x") for role in roles))  # type: ignore[arg-type]
    assert found == Exchanges((0,), ((1, 2, 3, 4, 5), (6, 7)))


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_example_is_an_item_or_accounted_for_under_every_rule(tokenizer: Any, data: st.DataObject) -> None:
    words = st.text(max_size=30) | st.sampled_from(
        ["", "<|im_end|>", "</s>", "\U000f0010", "a\r\n\t\x00", "<think>\nx\n</think>\n\n"]
    )
    said = st.tuples(
        st.sampled_from(["system", "user", "assistant"]), words, st.none() | words, st.none() | st.just(0.0)
    )
    messages = st.lists(said, max_size=5).map(
        lambda turns: tuple(
            Message(role, text, weight, thought if role == "assistant" else None)
            for role, text, thought, weight in turns
        )  # type: ignore[arg-type]
    )
    kinds = st.one_of(
        st.builds(Example, st.just(1), st.just("w"), text=words),
        st.builds(Example, st.just(1), st.just("w"), messages.filter(len), label=st.sampled_from([None, True, False])),
        st.builds(
            Example, st.just(1), st.just("w"), messages, chosen=messages.filter(len), rejected=messages.filter(len)
        ),
    )
    examples = data.draw(st.lists(kinds, max_size=4))
    rules = data.draw(
        st.builds(
            Rules,
            supervise=st.sampled_from(["assistant", "last", "all"]),
            thinking=st.sampled_from(["keep", "last", "drop", "mask"]),
            max_length=st.none() | st.integers(1, 90),
            too_long=st.sampled_from(["cut", "drop", "split"]),
        )
    )
    account = Account()
    encoder = Encoder(tokenizer, rules)
    together = encoder.encode(examples, account)
    source = account.source("")
    lost = sum(1 for items in together if not items)
    assert len(together) == len(examples)
    assert lost == source.dropped.count + sum(places.count for places in source.left_out.values())
    sequences = [found for items in together for item in items for found in item.sequences]
    assert source.sequences == len(sequences)
    assert source.tokens == sum(len(found.ids) for found in sequences)
    assert source.supervised == sum(np.count_nonzero(found.weights) for found in sequences)
    for found in sequences:
        assert np.any(found.weights)
        assert found.weights[0] == 0
        assert rules.max_length is None or len(found.ids) <= rules.max_length
    for example, items in zip(examples, together, strict=True):
        noted, whole = Account(), Account()
        (alone,) = Encoder(tokenizer, rules).encode([example], noted)
        assert _plain(alone) == _plain(items), "the others of a batch change nothing"
        Encoder(tokenizer, replace(rules, max_length=None)).encode([example], whole)
        if not noted.source("").left_out:
            assert noted.source("").lengths == whole.source("").lengths, "lengths are those before any cut"


def _plain(items: Any) -> Any:
    return [[(list(found.ids), list(found.weights), found.cut) for found in item.sequences] for item in items]


def test_a_row_of_a_megabyte_is_encoded_cut_and_split(tokenizer: Any) -> None:
    example = talk(("user", "é <|im_end|> word " * 60_000), ("assistant", "Yes."))
    document = Example(2, "d", text="word " * 200_000)
    whole = sequence(example, tokenizer)
    assert trained(whole, tokenizer) == ["Yes.<|im_end|>"]
    assert 980 < len(sequence(example, tokenizer, max_length=1000).ids) <= 1000
    items, _ = encode(document, tokenizer, max_length=4096, too_long="split")
    assert sum(len(item.sequences[0].ids) - 1 for item in items) == 1_000_000
