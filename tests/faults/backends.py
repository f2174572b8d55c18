"""Faults of inference backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from faults.registry import fault, good, suite_of

from tunekit.cli.new import Hook
from tunekit.hooks import hookimpl
from tunekit.testing import BackendSuite
from tunekit.values import Answer, Backend, Context, GenerationSettings, Message, ModelBundle


def answering(
    settings_change: Callable[[GenerationSettings], GenerationSettings] = lambda settings: settings,
    **methods: Callable[..., Any],
) -> Any:
    """The good backend, given other settings or with some methods replaced."""
    base = good(Hook.INFER, ".backend").MinPBackend

    class Faulty(base):
        def generate(self, prompts: Any, settings: GenerationSettings) -> list[Answer]:
            return super().generate(prompts, settings_change(settings))

    class FaultyPlugin(good(Hook.INFER).GoodInfer):
        @hookimpl
        def tunekit_infer_backend(self, bundle: ModelBundle, context: Context) -> Backend:
            return type("Replaced", (Faulty,), methods)(bundle, 0.01)

    return suite_of(BackendSuite, FaultyPlugin())


def generate(self: Any, prompts: Any, settings: GenerationSettings) -> list[Answer]:
    """The good `generate`, for those that change what it gives."""
    answers: list[Answer] = good(Hook.INFER, ".backend").MinPBackend.generate(self, prompts, settings)
    return answers


@fault(BackendSuite, "test_answers_come_in_the_order_of_the_prompts", "assert")
def answers_in_another_order():
    return answering(generate=lambda self, prompts, settings: generate(self, prompts, settings)[::-1])


@fault(BackendSuite, "test_no_prompt_gets_no_answer", "assert")
def an_answer_to_nothing():
    return answering(generate=lambda self, prompts, settings: [Answer("", 0, "end")])


@fault(BackendSuite, "test_a_text_is_continued_and_a_conversation_answered", "assert")
def a_text_taken_for_a_conversation():
    def talk(self, prompts, settings):
        turns = [(Message("user", prompt),) if isinstance(prompt, str) else prompt for prompt in prompts]
        return generate(self, turns, settings)

    return answering(generate=talk)


@fault(BackendSuite, "test_the_pieces_of_a_stream_are_the_answer", "assert")
def a_stream_that_loses_its_end():
    return answering(stream=lambda self, prompt, settings: iter([generate(self, [prompt], settings)[0].text[:-1]]))


@fault(BackendSuite, "test_the_length_limit_holds_and_is_told", "assert")
def answers_that_are_too_long():
    return answering(lambda settings: replace(settings, max_new_tokens=settings.max_new_tokens + 2))


@fault(BackendSuite, "test_a_stop_string_ends_an_answer_and_is_not_part_of_it", "assert")
def answers_that_do_not_stop():
    return answering(lambda settings: replace(settings, stop=()))


@fault(BackendSuite, "test_greedy_answers_are_the_same_every_time", "assert")
def greedy_answers_that_change():
    seen = count(2)
    return answering(lambda settings: replace(settings, max_new_tokens=next(seen)))


@fault(BackendSuite, "test_sampling_follows_the_seed", "assert")
def sampling_that_ignores_the_seed():
    return answering(lambda settings: replace(settings, seed=0))


@fault(BackendSuite, "test_a_narrow_nucleus_is_greedy", "assert")
def sampling_that_ignores_the_nucleus():
    return answering(lambda settings: replace(settings, top_p=1.0))


@fault(BackendSuite, "test_a_penalty_on_repetition_acts", "assert")
def answers_that_may_repeat_themselves():
    return answering(lambda settings: replace(settings, repetition_penalty=1.0))


@fault(BackendSuite, "test_scores_are_the_log_likelihoods_that_the_logits_give", "assert")
def scores_of_the_mean():
    def mean(self, texts):
        scores = good(Hook.INFER, ".backend").MinPBackend.score(self, texts)
        return [replace(score, log_likelihood=score.log_likelihood / score.tokens) for score in scores]

    return answering(score=mean)
