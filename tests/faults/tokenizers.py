"""Faults of plugins that change the tokenizer, or write tools as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from faults.registry import fault, suite_of

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import TokenizerPatchSuite, ToolFormatSuite
from tunekit.values import Context, Message, Report, ToolCall, ToolFormat


class Nothing(PluginConfig):
    """No options."""


class Ends(Plugin[Nothing]):
    """Ends every turn with a full stop."""

    @hookimpl
    def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
        tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}. {% endfor %}"
        return Report("turns end with a full stop")


def patching(change: Callable[[Any, Report], Report]) -> Any:
    class Faulty(Ends):
        @hookimpl
        def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
            return change(tokenizer, super().tunekit_patch_tokenizer(tokenizer, context))

    return suite_of(TokenizerPatchSuite, Faulty())


@fault(TokenizerPatchSuite, "test_it_changes_the_tokenizer", "nothing has changed")
def a_patch_that_leaves_the_tokenizer_alone():
    class Faulty(Ends):
        @hookimpl
        def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
            return Report("nothing to do")

    return suite_of(TokenizerPatchSuite, Faulty())


@fault(TokenizerPatchSuite, "test_another_tokenizer_is_not_touched", "assert")
def a_patch_of_the_tokenizers_class(monkeypatch):
    def change(tokenizer, report):
        monkeypatch.setattr(type(tokenizer), "special_tokens_map", {"eos_token": "."})
        return report

    return patching(change)


@fault(TokenizerPatchSuite, "test_patching_twice_is_patching_once", "assert")
def a_patch_that_adds_to_itself():
    class Faulty(Ends):
        @hookimpl
        def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
            tokenizer.chat_template += "."
            return Report("one more full stop")

    return suite_of(TokenizerPatchSuite, Faulty())


@fault(TokenizerPatchSuite, "test_what_it_changes_is_saved", "assert")
def a_patch_that_is_lost_when_saved():
    def change(tokenizer, report):
        save = tokenizer.save_pretrained

        def forget(folder):
            template, tokenizer.chat_template = tokenizer.chat_template, "{{ messages }}"
            save(folder)
            tokenizer.chat_template = template

        tokenizer.save_pretrained = forget
        return report

    return patching(change)


@fault(TokenizerPatchSuite, "test_the_report_says_in_one_line_what_was_done", "assert")
def a_report_of_two_lines():
    return patching(lambda tokenizer, report: replace(report, summary="one\ntwo"))


class Plain:
    """Calls as JSON lines behind a mark."""

    named = True

    def write(self, messages, tools):
        if not tools:
            return messages
        told = "Tools: " + json.dumps([tool["function"] for tool in tools])
        first = messages[0] if messages[0].role == "system" else Message("system", "")
        rest = messages[1:] if messages[0].role == "system" else messages
        return (replace(first, content=f"{first.content} {told}"), *map(self._plain, rest))

    def _plain(self, message):
        if message.role == "tool":
            return Message("user", f"Result: {message.content}")
        calls = "".join("\n@" + json.dumps([call.name, call.arguments]) for call in message.tool_calls)
        return replace(message, content=message.content + calls, tool_calls=())

    def parse(self, text):
        calls = [ToolCall(*json.loads(line)) for line in re.findall(r"^@(.*)$", text, re.MULTILINE)]
        return re.sub(r"\n@.*", "", text), tuple(calls)


def writing(**changes: Callable[..., Any]) -> Any:
    """The plain format with some of its methods replaced; each is given the good one first."""
    good = Plain()
    changed = {name: lambda self, *given, do=do, name=name: do(getattr(good, name), *given)
               for name, do in changes.items()}  # fmt: skip
    made = type("Faulty", (Plain,), changed)

    class Faulty(Plugin[Nothing]):
        """Calls as JSON lines."""

        @hookimpl
        def tunekit_tool_format(self) -> ToolFormat:
            return made()

    return suite_of(ToolFormatSuite, Faulty())


@fault(ToolFormatSuite, "test_it_reads_the_calls_it_writes", "assert")
def a_format_that_reads_calls_backwards():
    return writing(parse=lambda parse, text: (parse(text)[0], parse(text)[1][::-1]))


@fault(ToolFormatSuite, "test_an_answer_without_calls_is_an_answer", "assert")
def a_format_that_trims_answers():
    return writing(parse=lambda parse, text: (parse(text)[0].replace("\n\n", "\n"), parse(text)[1]))


@fault(ToolFormatSuite, "test_only_plain_messages_are_left", "assert")
def a_format_that_leaves_results_to_the_template():
    def write(good, messages, tools):
        return tuple(replace(turn, role="tool") if "Result" in turn.content else turn for turn in good(messages, tools))

    return writing(write=write)


@fault(ToolFormatSuite, "test_the_model_is_told_of_every_tool", "assert")
def a_format_that_hides_the_tools():
    def write(good, messages, tools):
        return tuple(replace(turn, content=turn.content.replace("find_river", "it")) if turn.role == "system" else turn
                     for turn in good(messages, tools))  # fmt: skip

    return writing(write=write)


@fault(ToolFormatSuite, "test_weights_and_thinking_stay_with_their_turns", "assert")
def a_format_that_forgets_weights():
    return writing(write=lambda good, *given: tuple(replace(turn, weight=None) for turn in good(*given)))


@fault(ToolFormatSuite, "test_without_tools_nothing_changes", "assert")
def a_format_that_always_tells_of_tools():
    turns = count()
    return writing(write=lambda good, *given: (Message("system", f"Tools {next(turns)}"), *good(*given)))
