"""Grade answers by fixed patterns, read from `examples/data/grader.json`. Nothing here looks at the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .examples import Question, example_path


class Grader:
    """Tells whether an answer is in character: the right content for its kind of question, in the right manner."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self._rules = rules
        self._flags = sum((getattr(re, name) for name in rules["flags"]), start=re.RegexFlag(0))

    @classmethod
    def shipped(cls) -> Grader:
        """The grader of the demo, written before any trained model was asked."""
        return cls(json.loads(example_path("data", "grader.json").read_text(encoding="utf-8")))

    def passes(self, question: Question, answer: str) -> bool:
        """Whether the answer satisfies the rules for every answer, for its kind, and for this question."""
        answer = answer.strip()
        every, kind = self._rules["every"], self._rules["kinds"][question.kind]
        body = re.split(self._rules["body_ends_at"], answer, maxsplit=1, flags=self._flags)[0]
        return (
            len(answer.split()) <= every["max_words"]
            and self._satisfies(answer, every["must"], every["must_not"])
            and self._satisfies(body, kind["must"], kind["must_not"])
            and (not question.key or self._satisfies(body, [question.key], ()))
        )

    def share(self, questions: Sequence[Question], answers: Sequence[str]) -> float:
        """The share of questions answered in character."""
        passed = sum(self.passes(question, answer) for question, answer in zip(questions, answers, strict=True))
        return passed / len(questions)

    def _satisfies(self, text: str, must: Sequence[Sequence[str]], must_not: Sequence[str]) -> bool:
        found = all(any(re.search(pattern, text, self._flags) for pattern in group) for group in must)
        return found and not any(re.search(pattern, text, self._flags) for pattern in must_not)
