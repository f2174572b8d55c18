"""What a chat template puts around each role's words, worked out by rendering, for formats that know no Jinja.

A template is taken for `before + content + after` for each role, one message behind the other, then what it opens an
answer with. Whether that is all it does is seen by rendering other conversations: a template that does more is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.errors import ExportError

Turns = Sequence[tuple[str, str]]
MARK = "\u2402{}\u2403"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Roles:
    """What stands before and after the words of each role, what opens an answer, and the system message by default."""

    around: dict[str, tuple[str, str]]
    opening: str
    system: str | None = None

    def render(self, turns: Turns, answering: bool = False) -> str:
        """A conversation as these parts make it."""
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        said = "".join(self.around[role][0] + content + self.around[role][1] for role, content in turns)
        return said + (self.opening if answering else "")


def roles_of(tokenizer: Any, begin: str = "") -> Roles:
    """Work the parts out. `begin` is text that the reader puts first by itself. Raises ExportError for a template
    that does more than put something around messages.
    """

    def render(turns: Turns, answering: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
        return text.removeprefix(begin)

    try:
        roles = _work_out(render)
        for turns in _conversations():
            for answering in (False, True):
                if answering and turns[-1][0] == "assistant":
                    continue
                if render(turns, answering) != roles.render(turns, answering):
                    raise ValueError(f"{len(turns)} messages that begin with {turns[0][0]} come out otherwise")
    except Exception as error:
        raise ExportError(
            f"the chat template cannot be said without Jinja: {error}",
            "export it as `gguf`, which holds the template itself, or set another one with a template plugin",
        ) from error
    return roles


def _work_out(render: Any) -> Roles:
    """The parts, each as what is left of a rendering when what is known of it is taken away."""
    system, user, answer = (MARK.format(role) for role in ROLES)
    talk = [("system", system), ("user", user), ("assistant", answer)]
    before_system, after_system_before_user, after_user = _cut(render(talk[:2]), system, user)
    _, _, after_user_before_answer, after_answer = _cut(render(talk), system, user, answer)
    before_answer = after_user_before_answer.removeprefix(after_user)
    next_user = _cut(render([*talk, ("user", user + user)]), answer, user + user)[1].removeprefix(after_answer)
    after_system = after_system_before_user.removesuffix(next_user)
    opening = render(talk[:2], True).removeprefix(render(talk[:2]))
    around = {
        "system": (before_system, after_system),
        "user": (next_user, after_user),
        "assistant": (before_answer, after_answer),
    }
    return Roles(around, opening, _default_system(render([("user", user)]), around, user))


def _default_system(rendered: str, around: dict[str, tuple[str, str]], user: str) -> str | None:
    """The system message that a conversation without one gets."""
    before, after = around["system"]
    head = _cut(rendered, user)[0].removesuffix(around["user"][0])
    return head.removeprefix(before).removesuffix(after) if head.startswith(before) and head else None


def _cut(text: str, *marks: str) -> list[str]:
    """What lies around marks that follow each other."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError("a message is changed or left out")
        parts.append(before)
    return [*parts, text]


def _conversations() -> Iterator[Turns]:
    talk = [
        ("user", "What is it?"),
        ("assistant", "It is {{ this }}."),
        ("user", "And\n\nthat?"),
        ("assistant", "Yes."),
    ]
    for length in range(1, len(talk) + 1):
        yield talk[:length]
        yield [("system", "Be brief."), *talk[:length]]
