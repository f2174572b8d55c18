"""Give a tokenizer a chat template, after making sure that the two fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Report

from . import named
from .template import Template

PROBE = "tunekit probes this template"
"""An answer that stands in no template."""
_PIN = r'\{% set \w+ = "[^"]*" \+%\}'


def install_(tokenizer: Any, template: Template, where: str) -> Report:
    """Set the tokenizer's chat template, and its end token to the one that ends an answer in it.

    Answers then end there when generating, and the tokenizer is saved that way with what is trained. `where` is the
    recipe key that asks for the template. Raises PlanError where template and tokenizer do not fit.
    """
    if missing := _missing_markers(tokenizer, template):
        raise PlanError([_needs_markers(tokenizer, template, missing, where)])
    end = _turn_end(tokenizer, template, where)
    before = tokenizer.special_tokens_map.get("eos_token")
    replaced = tokenizer.chat_template
    tokenizer.chat_template = _with_pins(tokenizer, template, end)
    tokenizer.eos_token = end
    instead = "" if replaced is None else " instead of the model's own"
    details = {"template": template.name, "source": template.source, "turn_end": end, "eos_token_before": before}
    return Report(
        f"chat template {template.name}{instead}; answers end with {end}", details, _undo(tokenizer, replaced, before)
    )


def _undo(tokenizer: Any, chat_template: Any, eos_token: str | None) -> Callable[[], None]:
    def undo() -> None:
        tokenizer.chat_template = chat_template
        tokenizer.eos_token = eos_token

    return undo


# Which tokens a template needs.


def _missing_markers(tokenizer: Any, template: Template) -> list[str]:
    """The markers that this tokenizer would take apart: only tokens added to the vocabulary are always kept whole."""
    added = tokenizer.get_added_vocab()
    return [marker for marker in template.markers if marker not in added]


def _needs_markers(tokenizer: Any, template: Template, missing: list[str], where: str) -> Problem:
    pieces = len(tokenizer.tokenize(missing[0]))
    fitting = [each.name for each in vars(named).values() if isinstance(each, Template) and _fits(tokenizer, each)]
    return Problem(
        where,
        f"the template {template.name} writes {', '.join(missing)}, which the model's tokenizer does not know as "
        f"single tokens ({missing[0]} would be taught as a text of {pieces} tokens)",
        f"templates that fit this tokenizer: {', '.join(fitting) or 'none, as it has no end token'}",
    )


def _fits(tokenizer: Any, template: Template) -> bool:
    ending = template.turn_end or tokenizer.special_tokens_map.get("eos_token")
    return ending is not None and not _missing_markers(tokenizer, template)


# What ends an answer.


def _turn_end(tokenizer: Any, template: Template, where: str) -> str:
    """The special token that follows an answer, found by rendering one."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    after = _render(tokenizer, template, where).partition(PROBE)[2]
    ending = "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)"
    found = re.match(rf"\s*({ending})", after)
    if found is None or found[1] != (template.turn_end or found[1]):
        raise PlanError([_ends_nowhere(tokenizer, template, after, where)])
    return found[1]


def _render(tokenizer: Any, template: Template, where: str) -> str:
    """Render a question and its answer, the probe."""
    import jinja2

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    special = {"bos_token": "", "eos_token": "", **tokenizer.special_tokens_map}
    try:
        text: str = tokenizer.apply_chat_template(turns, chat_template=template.text, tokenize=False, **special)
    except jinja2.TemplateSyntaxError as error:
        message = f"the template {template.name} is no valid Jinja: line {error.lineno}: {error.message}"
        raise PlanError([Problem(where, message, "correct that line")]) from error
    except (jinja2.TemplateError, ValueError, TypeError, LookupError) as error:
        message = f"the template {template.name} cannot render a question and an answer: {error}"
        raise PlanError([Problem(where, message, "correct the template")]) from error
    if PROBE not in text:
        message = f"the template {template.name} leaves out what the assistant says"
        raise PlanError([Problem(where, message, "correct the template")])
    return text


def _ends_nowhere(tokenizer: Any, template: Template, after: str, where: str) -> Problem:
    writable = template.turn_end is None and "eos_token" in tokenizer.special_tokens_map
    what = f"{after!r}" if after else "nothing"
    wanted = f", not {template.turn_end}" if template.turn_end else ""
    return Problem(
        where,
        f"no special token of the tokenizer ends an answer in the template {template.name} (after it stands {what}"
        f"{wanted}), so a model trained with it would never learn to stop",
        "write {{ eos_token }} after the answer"
        if writable
        else "choose a template whose end token this tokenizer has",
    )


# Tokens that mean something else from here on.


def _with_pins(tokenizer: Any, template: Template, end: str) -> str:
    """The text of the template, with the special tokens fixed that it must not take from the tokenizer.

    A template that writes `eos_token` and ends its answers with another token goes on writing the one that the
    tokenizer came with. A plain one writes `bos_token` only where the tokenizer begins every text with it.
    """
    standing, special, pins = tokenizer.chat_template, tokenizer.special_tokens_map, {}
    pinned = re.compile(rf"({_PIN})*{re.escape(template.text)}")
    if isinstance(standing, str) and pinned.fullmatch(standing) and special.get("eos_token") == end:
        return standing  # a saved tokenizer that has this template, and its end token, already
    if template.plain and not _begins(tokenizer):
        pins["bos_token"] = ""
    if "eos_token" in template.text and special.get("eos_token", end) != end:
        pins["eos_token"] = special["eos_token"]
    return "".join(f'{{% set {name} = "{token}" +%}}' for name, token in pins.items()) + template.text


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with its start token."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.special_tokens_map.get("bos_token") is not None and first == [tokenizer.bos_token_id]
