"""Tokens as text that can be read, with a real tokenizer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from looking_helpers import printed

from tunekit.data.shown import Shown, ShownItem, pieces_of
from tunekit.testing.tiny import tiny_tokenizer
from tunekit.values import Item, TokenSequence


def shown(ids, weights, tokenizer=None, most=512):
    sequence = TokenSequence(ids, weights, 1, "a.json, row 1")
    return Shown((ShownItem("sft", Item((sequence,)), tokenizer or tiny_tokenizer(), most),))


def test_a_long_row_is_cut_in_the_middle_and_says_by_how_much():
    found = shown([65] * 1000, [0.0] * 500 + [1.0] * 500, most=100)
    assert "… 900 tokens not shown, 450 of them supervised …" in printed(found, no_color=True)
    assert "900 tokens not shown" in found._repr_html_()


def test_markup_and_html_in_a_text_stay_text():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("[bold]a[/bold] <b>&amp; [/nonsense]")
    found = shown(ids, [1.0] * len(ids))
    text = printed(found, 200, no_color=True).replace("│", "").replace("⟦", "").replace("⟧", "")
    assert "[bold]a[/bold] <b>&amp; [/nonsense]" in text
    assert "<b>" not in found._repr_html_().replace("<b style", "")
    assert "&lt;" in found._repr_html_()


def test_characters_that_cannot_be_seen_are_marked():
    ids = tiny_tokenizer().encode("a\tb\x1b[31m\u202e\n")
    visible = "".join(piece.visible for piece in pieces_of(tiny_tokenizer(), ids, [1.0] * len(ids)))
    assert visible == "a⇥b␛[31m\\u202e⏎\n"
    assert "\x1b[31m" not in printed(shown(ids, [1.0] * len(ids)), no_color=True)


def test_bytes_are_joined_until_they_are_a_character():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("é漢👩")
    assert len(ids) == 2 + 3 + 4
    pieces = list(pieces_of(tokenizer, ids, [0.0] * 5 + [1.0] * 4))
    assert [(piece.text, len(piece.ids)) for piece in pieces] == [("é", 2), ("漢", 3), ("👩", 4)]
    assert str(pieces[2]) == f"tokens 6 to 9: ids {', '.join(map(str, ids[5:]))}, weight 1"


def test_special_tokens_are_told_from_the_same_text():
    tokenizer = tiny_tokenizer()
    written = tokenizer.encode("<|im_end|>", split_special_tokens=True)
    pieces = list(pieces_of(tokenizer, [tokenizer.eos_token_id, *written], [0.0] * (1 + len(written))))
    assert (pieces[0].text, pieces[0].special) == ("<|im_end|>", True)
    assert "".join(piece.text for piece in pieces[1:]) == "<|im_end|>"
    assert not any(piece.special for piece in pieces[1:])


def test_the_first_token_is_never_a_target():
    assert [piece.weight for piece in pieces_of(tiny_tokenizer(), [65, 66], [1.0, 1.0])] == [0.0, 1.0]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_pieces_are_the_whole_text(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    pieces = list(pieces_of(tokenizer, ids, [1.0] * len(ids)))
    assert "".join(piece.text for piece in pieces) == text
    assert [number for piece in pieces for number in piece.ids] == ids


def test_only_two_answers_to_one_row_are_called_chosen_and_rejected():
    def names(second, label=None):
        sequences = (TokenSequence([65], [1.0], 1, "a.json, row 1"), TokenSequence([66], [1.0], 2, second))
        return [each.name for each in ShownItem("sft", Item(sequences, label), tiny_tokenizer(), 9).sequences]

    assert names("a.json, row 1") == ["chosen", "rejected"]
    assert names("a.json, row 1", label=True) == ["answer 1", "answer 2"]
    assert names("a.json, row 2") == ["a.json, row 1", "a.json, row 2"]
