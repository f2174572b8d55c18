"""What a chat template puts around each role's words, worked out by rendering, for formats that know no Jinja.

A template is taken for a text it begins with, `before + content + after` for each role, one message behind the other,
and what it opens an answer with. Whether that is all it does is seen by rendering other conversations: a template that
does more is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunekit.errors import ExportError

Turns = Sequence[tuple[str, str]]
MARK = "\u2402{}\u2403"
ROLES = ("system", "user", "assistant")
PADDED = [("user", " \n So? \n ")]


@dataclass(frozen=True)
class Roles:
    """What stands before and after the words of each role, what opens an answer, and the system message by default.

    `head` stands before the first message, whosever it is. `trims` says that the template takes blanks away from around
    messages, which formats without Jinja do not.
    """

    around: dict[str, tuple[str, str]]
    opening: str
    head: str = ""
    system: str | None = None
    trims: bool = False

    def render(self, turns: Turns) -> str:
        """A conversation that waits for an answer, as these parts make it."""
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        said = "".join(self.around[role][0] + content + self.around[role][1] for role, content in turns)
        return self.head + said + self.opening


def roles_of(tokenizer: Any, begin: str = "") -> Roles:
    """Work the parts out. `begin` is text that the reader puts first by itself. Raises ExportError for a template
    that does more than put something around messages.
    """

    def render(turns: Turns, answering: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
        return text.removeprefix(begin)

    try:
        roles = _work_out(render)
        for turns in _conversations():
            if render(turns) != roles.render(turns):
                raise ValueError(f"{len(turns)} messages that begin with {turns[0][0]} come out otherwise")
        roles = replace(roles, trims=render(PADDED) != roles.render(PADDED))
    except Exception as error:
        raise ExportError(
            f"the chat template cannot be said without Jinja: {error}",
            "export it as `gguf`, which holds the template itself, or set another one with a template plugin",
        ) from error
    return roles


def _work_out(render: Any) -> Roles:
    """The parts, each as what is left of a rendering when what is known of it is taken away."""
    system, user, answer = (MARK.format(role) for role in ROLES)
    talk = [("system", system), ("user", user), ("assistant", answer), ("user", user)]
    before_system, system_user, user_answer, answer_user, waiting = _cut(render(talk), system, user, answer, user)
    first = _cut(render([("user", user)]), user)[0]
    before_user = _ending(system_user, answer_user, first)
    after_user = _beginning(user_answer, waiting)
    alone = _cut(render(talk[:2], False), user)[1]
    after_user = alone if after_user.startswith(alone) else after_user
    head = first.removesuffix(before_user)
    after_system = system_user.removesuffix(before_user)
    default = None
    if not before_system.startswith(head):
        head, default = "", head.removeprefix(before_system).removesuffix(after_system)
    around = {
        "system": (before_system.removeprefix(head), after_system),
        "user": (before_user, after_user),
        "assistant": (user_answer.removeprefix(after_user), answer_user.removesuffix(before_user)),
    }
    return Roles(around, waiting.removeprefix(after_user), head, default)


def _ending(*texts: str) -> str:
    """What all of these end with."""
    return _beginning(*(text[::-1] for text in texts))[::-1]


def _beginning(*texts: str) -> str:
    """What all of these begin with."""
    shortest = min(texts, key=len)
    ends = (at for at, letter in enumerate(shortest) if any(text[at] != letter for text in texts))
    return shortest[: next(ends, len(shortest))]


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
    """Conversations that wait for an answer, with a system message and without."""
    talk = [("user", "What is it?"), ("assistant", "It is {{ this }}."), ("user", "And\n\nthat?")]
    talk += [("assistant", "Yes."), ("user", "So")]
    for length in (1, 3, 5):
        yield talk[:length]
        yield [("system", "Be brief."), *talk[:length]]
