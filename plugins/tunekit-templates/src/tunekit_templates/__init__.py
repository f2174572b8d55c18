"""Chat templates by name or file, and tools as text where a chat template has no place for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tunekit.errors import PlanError, Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Machine, Plan, Report, ToolFormat

from .entries import TEMPLATES, TOOL_FORMATS
from .template import Template

__all__ = ["ChatTemplate", "ChatTemplateConfig", "Template", "Tools", "ToolsConfig"]


class ChatTemplateConfig(PluginConfig):
    """The options of a chat template: exactly one of the two."""

    name: str | None = Field(None, description="a template by name: chatml, llama3, gemma, alpaca ...")
    file: str | None = Field(None, description="a file that holds a chat template in Jinja")

    @model_validator(mode="after")
    def _one_of_two(self) -> ChatTemplateConfig:
        if (self.name is None) == (self.file is None):
            raise ValueError("give exactly one of name and file")
        return self


class ChatTemplate(Plugin[ChatTemplateConfig]):
    """A chat template for a model that has none, or another than its own."""

    provides = frozenset({"chat.template"})
    conflicts = frozenset({"chat.template"})
    after = frozenset({"vocabulary"})  # it may bring the tokens that the template writes

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a name that nobody offers and a file that is not there."""
        return self._problems()

    @hookimpl
    def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
        """Set the chat template of this tokenizer, and its end token to the one that ends an answer."""
        from .installing import install_

        if problems := self._problems():
            raise PlanError(problems)
        return install_(tokenizer, self._template(), self._where)

    @property
    def _where(self) -> str:
        return "use.template.name" if self.config.file is None else "use.template.file"

    def _problems(self) -> list[Problem]:
        if self.config.name is not None:
            return TEMPLATES.problems(self.config.name, self._where)
        assert self.config.file is not None, "the config holds one of the two"
        if Path(self.config.file).is_file():
            return []
        return [Problem(self._where, f"there is no file {self.config.file}", "name a file that holds a Jinja template")]

    def _template(self) -> Template:
        if self.config.file is not None:
            return Template(self.config.file, self._read(Path(self.config.file)))
        template = TEMPLATES.load(str(self.config.name))
        if not isinstance(template, Template):
            message = f"{self.config.name} is offered as {template!r}, no Template"
            raise PlanError([Problem(self._where, message, "point its entry at a tunekit_templates.Template")])
        return template

    def _read(self, file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PlanError([Problem(self._where, f"{file} is no text in UTF-8", "save it as UTF-8")]) from error


class ToolsConfig(PluginConfig):
    """The options of tools as text."""

    format: str | None = Field(
        None,
        description="how tools are written: hermes, llama3, mistral, glm, react ...; named, it is used even where the "
        "chat template can write tools itself; none: react, where it cannot",
    )


class Tools(Plugin[ToolsConfig]):
    """Tools, calls and results as text."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a name that nobody offers."""
        return self._problems()

    @hookimpl
    def tunekit_tool_format(self) -> ToolFormat:
        """Say how tools are written."""
        from .formats import Chosen, Writing

        if problems := self._problems():
            raise PlanError(problems)
        writing = TOOL_FORMATS.load(self._name)
        if not isinstance(writing, Writing):
            message = f"{self._name} is offered as {writing!r}, which has not both write and parse"
            raise PlanError([Problem("use.tools.format", message, "point its entry at an object that has")])
        return Chosen(writing, self.config.format is not None, TOOL_FORMATS.origin(self._name))

    @property
    def _name(self) -> str:
        return self.config.format or "react"

    def _problems(self) -> list[Problem]:
        return TOOL_FORMATS.problems(self._name, "use.tools.format")
