"""The model's chat template: what it knows (tools, thinking, marks), and rendering with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import faults

Turns = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None

_PROBE = "tunekit probes this template"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Facts:
    """What the source of a template says: the names it uses, the text it writes."""

    names: frozenset[str]
    attributes: frozenset[str]
    literals: tuple[str, ...]

    @classmethod
    def of(cls, source: str) -> Facts:
        """Read a Jinja source; comments do not count."""
        import jinja2

        names: set[str] = set()
        attributes: set[str] = set()
        literals, previous = [], ""
        for _, kind, value in jinja2.Environment().lex(source):
            if kind == "name":
                (attributes if previous == "." else names).add(value)
            elif kind == "string":
                literals.append(value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape"))
            elif kind == "data":
                literals.append(value)
            if kind != "whitespace":
                previous = value
        return cls(frozenset(names), frozenset(attributes), tuple(literals))

    def reads(self, key: str) -> bool:
        """Whether a message's key is read: `message.key` or `message["key"]`."""
        return key in self.attributes or key in self.literals


class Template:
    """The template that a tokenizer uses for conversations `with_tools`, or without."""

    def __init__(self, tokenizer: Any, with_tools: bool) -> None:
        self.tokenizer = tokenizer
        self.source: str = tokenizer.get_chat_template(tools=[] if with_tools else None)

    @cached_property
    def facts(self) -> Facts:
        """What the source says."""
        return Facts.of(self.source)

    @cached_property
    def writes_tools(self) -> bool:
        """Whether it can be given tools."""
        return "tools" in self.facts.names

    @cached_property
    def reads_thinking(self) -> bool:
        """Whether it reads thinking from a key of its own; transformers passes it on under the name gpt-oss reads."""
        return self.facts.reads("reasoning_content") or self.facts.reads("thinking")

    @cached_property
    def wants_parts(self) -> bool:
        """Whether it writes contents only where they are given in parts, as templates of vision-language models do."""
        shown = [self._shown(content) for content in (_PROBE, [{"type": "text", "text": _PROBE}])]
        return shown == [False, True]

    def _shown(self, content: Any) -> bool:
        try:
            return _PROBE in self.render([{"role": "user", "content": content}])
        except faults.Fault:
            return False

    @cached_property
    def marks_answers(self) -> bool:
        """Whether it says itself, with `{% generation %}`, what the assistant writes."""
        return _GENERATION.search(self.source) is not None

    def render(self, turns: Turns, tools: Tools = None, prompt: bool = False) -> str:
        """Render one conversation. Raises Fault where the template refuses it."""
        return self.render_all([turns], tools, prompt)[0]

    def render_all(self, conversations: Sequence[Turns], tools: Tools = None, prompt: bool = False) -> list[str]:
        """Render conversations at once. Raises Fault where the template refuses one of them."""
        import jinja2

        try:
            texts: list[str] = self.tokenizer.apply_chat_template(
                list(conversations), tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except (jinja2.TemplateError, ValueError, TypeError, LookupError) as error:
            raise faults.refused(error) from error
        return texts

    def marks(self, turns: Turns, tools: Tools) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text, and the characters of it that `{% generation %}` marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [turns],
            tools=tools,  # type: ignore[arg-type]
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        (text,), (marked,) = rendered
        return text, marked
