"""Rewards over HTTP: answers are posted as JSON, rewards come back.

The body is `{"samples": [{"prompt": [{"role", "content"}, ...], "answer", "finish", "reference", "columns", "where"},
...]}`; the answer to it is `{"rewards": [number, ...]}`, one for each sample in their order.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Sample

from .rewarding import Rewarder

PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class Endpoint(Rewarder):
    """Posts all answers of a rollout at once. Raises TunekitError where no attempt is answered with rewards."""

    name = "endpoint"

    def __init__(self, url: str, timeout: float, retries: int) -> None:
        self.url, self.timeout, self.retries = url, timeout, retries

    def value(self, samples: Sequence[Sample]) -> list[float]:
        """What the endpoint says."""
        body = json.dumps({"samples": [_told(sample) for sample in samples]}, default=str).encode()
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return self._rewards(self._post(body), len(samples))
            except urllib.error.HTTPError as error:
                failed: Exception = error
                error.close()
                if error.code not in TRY_AGAIN:
                    break
            except (OSError, http.client.HTTPException) as error:
                failed = error
        told = f"after {attempt + 1} attempts" if attempt else "at once"
        what = f"{self.url} gave no rewards {told}: {type(failed).__name__}: {failed}"
        raise TunekitError(what, "see whether it runs, or raise reward.timeout or reward.retries") from failed

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            answer: bytes = response.read()
        return answer

    def _rewards(self, answer: bytes, count: int) -> list[float]:
        remedy = 'it has to answer {"rewards": [number, ...]}, one for each sample'
        try:
            found: Any = json.loads(answer)["rewards"]
            rewards = [float(value) for value in found]
        except (ValueError, TypeError, KeyError) as error:
            raise TunekitError(f"{self.url} answered {answer[:80]!r}", remedy) from error
        if len(rewards) != count:
            raise TunekitError(f"{self.url} gave {len(rewards)} rewards for {count} answers", remedy)
        return rewards


def _told(sample: Sample) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.prompt]
    told = {"answer": sample.answer, "finish": sample.finish, "reference": sample.reference, "where": sample.where}
    return {"prompt": turns, **told, "columns": dict(sample.columns)}
