"""A chat template as a value: its Jinja text, what ends an answer in it, and the tokens it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template that can be named in a recipe, offered as an entry point of the group `tunekit.templates`.

    `text` is Jinja as transformers renders it, with `{% generation %}` around exactly what the assistant says and what
    ends its turn. `turn_end` is that ending token, None where it is the tokenizer's own end token. `markers` are the
    strings in it that have to be single tokens of the tokenizer. `source` says where the template was published.
    `plain` says that a conversation begins as any text of the tokenizer does: with `bos_token` where the tokenizer
    begins every text with it, else without.
    """

    name: str
    text: str
    turn_end: str | None = None
    markers: tuple[str, ...] = ()
    source: str = ""
    plain: bool = False
