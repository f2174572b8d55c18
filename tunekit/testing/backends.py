"""What an inference backend has to satisfy: answers in order, streams what it generates, and true scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..values import Backend, GenerationSettings, Message, ModelBundle
from .plugins import PluginSuite
from .runs import run_context
from .tiny import tiny_bundle

QUESTIONS = ("Which river flows through the town?", "What is two and three?", "Who?")


class BackendSuite(PluginSuite):
    """`tolerance` is the largest relative difference of a log-likelihood from the one that the logits give."""

    tolerance: ClassVar[float] = 1e-4

    def bundle(self) -> ModelBundle:
        """What answers: the same tiny model each time, trained a little so that its choices are clear."""
        from .observing import train_

        bundle = tiny_bundle()
        train_(bundle.model, steps=3)
        return bundle

    def open(self, folder: Path) -> Backend:
        """Make the backend over the bundle."""
        context = run_context(self.make(), *self.companions, folder=folder)
        backend: Backend = context.calls.own("tunekit_infer_backend", bundle=self.bundle(), context=context)
        return backend

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """The backend over the bundle, made anew for each test."""
        return self.open(tmp_path)

    def test_answers_come_in_the_order_of_the_prompts(self, backend: Backend) -> None:
        """A batch answers as one prompt after the other does, whatever their lengths."""
        settings = GenerationSettings(max_new_tokens=8)
        prompts = _prompts()
        together = backend.generate(prompts, settings)
        assert together == [backend.generate([prompt], settings)[0] for prompt in prompts]

    def test_no_prompt_gets_no_answer(self, backend: Backend) -> None:
        """An empty batch is not an error."""
        assert backend.generate([], GenerationSettings()) == []

    def test_a_text_is_continued_and_a_conversation_answered(self, backend: Backend) -> None:
        """The same words differ by the template around them."""
        settings = GenerationSettings(max_new_tokens=8)
        text, conversation = backend.generate([QUESTIONS[0], _prompts()[0]], settings)
        assert text.tokens > 0
        assert text.text != conversation.text

    def test_the_pieces_of_a_stream_are_the_answer(self, backend: Backend) -> None:
        """Joined, they are what `generate` returns, and no character is cut in two."""
        for settings in (GenerationSettings(max_new_tokens=12), GenerationSettings(max_new_tokens=12, temperature=1.0)):
            for prompt in _prompts():
                pieces = list(backend.stream(prompt, settings))
                assert "".join(pieces) == backend.generate([prompt], settings)[0].text

    def test_the_length_limit_holds_and_is_told(self, backend: Backend) -> None:
        """An answer that was cut says so."""
        for answer in backend.generate(_prompts(), GenerationSettings(max_new_tokens=3)):
            assert answer.tokens <= 3
            assert answer.finish != "length" or answer.tokens == 3

    def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(self, backend: Backend) -> None:
        """Wherever it falls between tokens; a stream ends at the same place."""
        prompt, settings = _prompts()[0], GenerationSettings(max_new_tokens=12)
        whole = backend.generate([prompt], settings)[0].text
        assert len(whole) > 3, "the model says too little to stop it"
        stop = whole[2:4]
        stopped = GenerationSettings(max_new_tokens=12, stop=(stop,))
        answer = backend.generate([prompt], stopped)[0]
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish == "stop"
        assert "".join(backend.stream(prompt, stopped)) == answer.text

    def test_greedy_answers_are_the_same_every_time(self, backend: Backend) -> None:
        """Temperature 0 uses no random numbers."""
        settings = GenerationSettings(max_new_tokens=8)
        assert backend.generate(_prompts(), settings) == backend.generate(_prompts(), settings)

    def test_sampling_follows_the_seed(self, backend: Backend) -> None:
        """The same seed gives the same answers, and some other seed gives others."""
        first, again, *others = (
            backend.generate(_prompts()[:1], GenerationSettings(max_new_tokens=12, temperature=1.5, seed=seed))
            for seed in (0, 0, 1, 2, 3)
        )
        assert first == again
        assert any(other != first for other in others)

    def test_a_narrow_nucleus_is_greedy(self, backend: Backend) -> None:
        """With `top_p` next to 0 only the likeliest token is left, at any temperature."""
        narrow = GenerationSettings(max_new_tokens=8, temperature=1.5, top_p=1e-6)
        assert backend.generate(_prompts(), narrow) == backend.generate(
            _prompts(), GenerationSettings(max_new_tokens=8)
        )

    def test_a_penalty_on_repetition_acts(self, backend: Backend) -> None:
        """A heavy one changes what a model says that repeats itself."""
        settings = [GenerationSettings(max_new_tokens=24, repetition_penalty=penalty) for penalty in (1.0, 5.0)]
        plain, penalised = (backend.generate(_prompts(), each) for each in settings)
        assert plain != penalised

    def test_scores_are_the_log_likelihoods_that_the_logits_give(self, backend: Backend) -> None:
        """Summed over all tokens but the first, for texts of different lengths in one batch."""
        texts = ["Two and three is five.", "The river", "The quick brown fox jumps over the lazy dog."]
        bundle = self.bundle()
        for text, score in zip(texts, backend.score(texts), strict=True):
            ids = bundle.tokenizer(text)["input_ids"]
            expected = _log_likelihood(bundle.model, ids)
            assert score.tokens == len(ids) - 1
            assert score.log_likelihood == pytest.approx(expected, rel=self.tolerance)


def _prompts() -> list[tuple[Message, ...]]:
    return [(Message("user", question),) for question in QUESTIONS]


def _log_likelihood(model: Any, ids: list[int]) -> float:
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits.double()[0, :-1]
    targets = torch.tensor(ids[1:])
    return float(torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets].sum())
