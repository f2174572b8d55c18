"""Examples become token ids with a loss weight on each, by rendering the model's own chat template.

Which tokens are trained is never found by searching the text for role markers, which a user's message may contain. It
follows from rendering alone. An answer begins where `messages[:k]` rendered with the generation prompt ends. It ends
where a second rendering, with the answer's content replaced by a private character, continues as the first one does.
The special token that follows (`<|im_end|>`, `<|eot_id|>`, `</s>`) is trained with it: it is what ends an answer.
A template with `{% generation %}` marks its answers itself. Where a template leaves an answer out, or rewrites it so
that its place cannot be told, the row is refused.

Special tokens inside a message stay plain text, so that no message can forge a turn (`fences`). The ids are those of
`tokenizer.apply_chat_template(messages, sanitize_control_tokens=True)`, which for messages without special tokens are
those of `tokenizer.apply_chat_template(messages)`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from tunekit.errors import DataError, Problem
from tunekit.values import BadRow, Example, Message

from .fences import PROBE, Fences, Forged, Tokens, encode

Supervise = Literal["assistant", "last", "all"]

BATCH = 256
"""Texts given to the tokenizer at once; it works on them in parallel."""
LISTED = 20
"""Unusable rows named one by one in an error; the others are counted by reason."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Sequence:
    """One example as tokens.

    `ids` and `weights` have one entry per token. `weights[i]` is the loss weight of token i as a target, 0 where it is
    only context; the first token is never a target. `cut` counts the tokens that the length limit took off the end.
    `row` and `where` lead back to the row of the data.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    cut: int
    row: int
    where: str


def render(example: Example, tokenizer: Any, supervise: Supervise, max_length: int | None) -> Sequence:
    """Turn one example into a sequence; see `render_all`. Raises DataError with the reason and what to do."""
    return render_all([example], tokenizer, supervise, max_length)[0]


def render_all(
    examples: Iterable[Example], tokenizer: Any, supervise: Supervise, max_length: int | None
) -> list[Sequence]:
    """Turn examples into sequences, in their order.

    `supervise` says what is trained: every `assistant` turn, the `last` of them, or `all` tokens. A message's own
    weight overrides the rule: 0 leaves it out. Documents (`text`) are trained on every token and get the end token.
    Sequences longer than `max_length` tokens are cut from the right, so an answer that is cut off is not taught to end.

    Raises DataError, for all rows at once: a tokenizer without chat template, a template that refuses a conversation,
    no assistant turn, nothing left to train on, no examples at all.
    """
    return list(render_rows(examples, tokenizer, supervise, max_length).sequences)


@dataclass(frozen=True)
class Rendered:
    """The sequences of examples that can be trained on, and what was left out because it is optional."""

    sequences: tuple[Sequence, ...]
    left_out: tuple[BadRow, ...]


def render_rows(examples: Iterable[Example], tokenizer: Any, supervise: Supervise, max_length: int | None) -> Rendered:
    """Turn examples into sequences as `render_all` does, and tell which optional ones could not be trained on."""
    rows = list(examples)
    results = list(_attempt_all(rows, tokenizer, supervise, max_length))
    pairs = [(row, result) for row, result in zip(rows, results, strict=True) if isinstance(result, BadRow)]
    if needed := [bad for row, bad in pairs if not row.optional]:
        raise DataError(_problems(needed))
    sequences = tuple(result for result in results if isinstance(result, Sequence))
    if not sequences:
        raise DataError([Problem("", "there are no examples to train on", "check `limit`, `split` and the data file")])
    return Rendered(sequences, tuple(bad for _, bad in pairs))


def _attempt_all(
    examples: Iterable[Example], tokenizer: Any, supervise: Supervise, max_length: int | None
) -> Iterator[Sequence | BadRow]:
    """One result for each example. DataError only where no conversation could be rendered at all."""
    assert max_length is None or max_length > 0, "max_length counts tokens"
    renderer = _Renderer(tokenizer, supervise)
    remaining = iter(examples)
    while batch := list(islice(remaining, BATCH)):
        for result in renderer.render(batch):
            yield result if isinstance(result, BadRow) else _cut(result, max_length)


class _Unusable(Exception):
    """Why an example cannot be trained on, and what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, slots=True)
class _Span:
    """Characters `start` up to `end` of a rendered text and their weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Draft:
    """A rendered text; what lies outside the spans weighs `rest`. `tokens` is None until the text is tokenised."""

    example: Example
    text: str
    spans: tuple[_Span, ...]
    rest: float
    tokens: Tokens | None = None


class _Renderer:
    """Renders, tokenises and weighs with one tokenizer and one rule."""

    def __init__(self, tokenizer: Any, supervise: Supervise) -> None:
        self.tokenizer = tokenizer
        self.supervise = supervise
        self.fences = Fences(tokenizer)

    def render(self, examples: list[Example]) -> list[Sequence | BadRow]:
        drafts = [self._attempt(example) for example in examples]
        tokens = self._tokenise([draft for draft in drafts if isinstance(draft, _Draft)])
        return [draft if isinstance(draft, BadRow) else self._sequence(draft, next(tokens)) for draft in drafts]

    def _attempt(self, example: Example) -> _Draft | BadRow:
        try:
            return self._conversation(example) if example.text is None else _Draft(example, example.text, (), 1.0)
        except _Unusable as unusable:
            return BadRow(example.row, example.where, unusable.reason, unusable.remedy)
        except Forged as forged:
            return BadRow(example.row, example.where, str(forged), "remove it from the message")

    # Rendering: which characters are trained.

    def _conversation(self, example: Example) -> _Draft:
        self._require_template()
        messages = tuple(replace(turn, content=self.fences.fence(turn.content)) for turn in example.messages)
        wanted = _weights(messages, self.supervise)
        text = self._template(messages)
        generated = self._generated(messages) if _GENERATION.search(self._template_source) else {}
        rest = 1.0 if self.supervise == "all" else 0.0
        spans = (
            _Span(*self._span(text, messages, index, generated.get(index)), weight)
            for index, weight in wanted.items()
            if weight != rest
        )
        tokens = self.fences.encode(text) if self.fences.fenced(text) else None
        return _Draft(example, text, tuple(spans), rest, tokens)

    def _template(self, messages: tuple[Message, ...], prompt: bool = False) -> str:
        import jinja2

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, ValueError, TypeError, LookupError) as error:
            raise _Unusable(
                f"the model's chat template refuses this conversation: {error}",
                "change the roles or their order to what the model was trained with",
            ) from error
        return text

    def _starts(self, text: str, messages: tuple[Message, ...], prompt: bool) -> int | None:
        """Where these messages, rendered alone, end in `text`; None where `text` does not begin with them."""
        try:
            beginning = self._template(messages, prompt)
        except _Unusable:
            return None
        return len(beginning) if text.startswith(beginning) else None

    def _span(
        self, text: str, messages: tuple[Message, ...], index: int, marked: tuple[int, int] | None
    ) -> tuple[int, int]:
        start, end = self._content(text, messages, index)
        if marked is not None:
            return marked
        if messages[index].role == "assistant":
            prompted = self._starts(text, messages[:index], prompt=True)
            start = start if prompted is None else prompted
        end = self._closed(text, messages, index, end)
        if start is None or end is None or start > end:
            raise _Unusable(
                f"the model's chat template rewrites message {index + 1} so that its place cannot be told for sure",
                "use a template with {% generation %} around the assistant's turns, or leave the row out",
            )
        return start, end

    def _content(self, text: str, messages: tuple[Message, ...], index: int) -> tuple[int | None, int | None]:
        """Where the content of one message begins and ends, by rendering with a private character in its place."""
        probed = Message(messages[index].role, PROBE)
        before, found, after = self._template((*messages[:index], probed, *messages[index + 1 :])).partition(PROBE)
        if not found:
            raise _Unusable(
                f"the model's chat template leaves out the content of message {index + 1}",
                "use a template for plain text messages, or give the message the weight 0",
            )
        if PROBE in after:
            return None, None
        start = len(before) if text.startswith(before) else None
        return start, len(text) - len(after) if text.endswith(after) else None

    def _closed(self, text: str, messages: tuple[Message, ...], index: int, end: int | None) -> int | None:
        """Move the end of a turn behind its end-of-turn token, or behind what a template without one writes there."""
        if end is not None and (token := self.fences.ending.match(text, end)):
            return token.end()
        turn = self._starts(text, messages[: index + 1], prompt=False)
        return end if turn is None else turn

    def _generated(self, messages: tuple[Message, ...]) -> dict[int, tuple[int, int]]:
        """The spans that a template with `{% generation %}` marks, by index of the assistant's message.

        None at all where it marks more or fewer parts than there are answers, as some do around a closing token.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [{"role": message.role, "content": message.content} for message in messages]
        rendered: Any = render_jinja_template(
            [turns],
            chat_template=self._template_source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        (text,), (marked,) = rendered
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if len(marked) != len(answers):
            return {}
        return {index: self._marked(text, *span) for index, span in zip(answers, marked, strict=True)}

    def _marked(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A marked span, with the end-of-turn token behind it where the mark stops short of one."""
        if self.fences.ends(text[start:end]):
            return start, end
        token = self.fences.ending.match(text, end)
        return start, token.end() if token else end

    @cached_property
    def _template_source(self) -> str:
        source: str = self.tokenizer.get_chat_template()
        return source

    def _require_template(self) -> None:
        if not self.tokenizer.chat_template:
            raise DataError([_no_template()])
        if not self.tokenizer.is_fast:
            raise DataError([_no_offsets(self.tokenizer)])

    # Tokenising.

    def _tokenise(self, drafts: list[_Draft]) -> Iterator[Tokens]:
        waiting = [draft for draft in drafts if draft.tokens is None]
        chats = iter(encode(self.tokenizer, [draft.text for draft in waiting if draft.example.text is None]))
        documents = iter(self._documents([draft.text for draft in waiting if draft.example.text is not None]))
        for draft in drafts:
            yield draft.tokens or next(chats if draft.example.text is None else documents)

    def _documents(self, texts: list[str]) -> list[Tokens]:
        """Tokenise documents: with the tokenizer's own start token, never twice, and with the end token."""
        if not texts:
            return []
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found: list[Tokens] = []
        for ids in self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]:
            once = ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids
            found.append(Tokens([*once, end] if end is not None and once[-1:] != [end] else once, []))
        return found

    def _sequence(self, draft: _Draft, tokens: Tokens) -> Sequence:
        weights = [draft.rest] * len(tokens.ids)
        starts, ends = [left for left, _ in tokens.offsets], [right for _, right in tokens.offsets]
        for span in draft.spans:
            first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
            weights[first:last] = [span.weight] * (last - first)
        weights[:1] = [0.0] * min(1, len(weights))
        example = draft.example
        return Sequence(tuple(tokens.ids), tuple(weights), 0, example.row, example.where)


def _weights(messages: tuple[Message, ...], supervise: Supervise) -> dict[int, float]:
    """The weight of each message that is not treated like the rest of its conversation."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers and supervise != "all":
        raise _Unusable("there is no assistant turn to train on", "add the answer, or leave the row out")
    ruled = {"assistant": answers, "last": answers[-1:], "all": []}[supervise]
    weights = dict.fromkeys(ruled, 1.0)
    weights.update({index: message.weight for index, message in enumerate(messages) if message.weight is not None})
    return dict(sorted(weights.items()))


def _cut(sequence: Sequence, max_length: int | None) -> Sequence | BadRow:
    """Cut a sequence to `max_length`; a row with nothing left to train on is bad."""
    if not any(sequence.weights):
        return BadRow(
            sequence.row,
            sequence.where,
            "every label is masked: no token of this row would be trained",
            "give a message a weight above 0, or supervise more than this",
        )
    if max_length is None or len(sequence.ids) <= max_length:
        return sequence
    if not any(sequence.weights[:max_length]):
        first = next(index for index, weight in enumerate(sequence.weights) if weight)
        return BadRow(
            sequence.row,
            sequence.where,
            "every label is masked: the length limit cuts off all that would be trained",
            f"max_length is {max_length}, the first trained token is number {first + 1} of {len(sequence.ids)}; "
            f"choose {len(sequence.ids)} to keep the row whole, or shorten the prompt",
        )
    cut = len(sequence.ids) - max_length
    return Sequence(sequence.ids[:max_length], sequence.weights[:max_length], cut, sequence.row, sequence.where)


def _problems(bad: list[BadRow]) -> list[Problem]:
    named = [Problem(row.where, row.reason, row.remedy) for row in bad[:LISTED]]
    more = Counter(row.reason for row in bad[LISTED:])
    return named + [Problem(f"{count} more rows", reason) for reason, count in more.items()]


def _no_template() -> Problem:
    return Problem(
        "model",
        "its tokenizer has no chat template, and the data are conversations",
        "use an instruct model, give the tokenizer a chat template, or train on documents (a `text` column)",
    )


def _no_offsets(tokenizer: Any) -> Problem:
    return Problem(
        "model",
        f"its tokenizer ({type(tokenizer).__name__}) does not tell which characters a token covers, so answers "
        "cannot be told from prompts",
        "use a model with a tokenizer.json",
    )
