"""Every option of the stage acts: on answers, on what they are worth, on advantages, on the loss, or on weights."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunekit.errors import PlanError, TunekitError
from tunekit.testing import stage_context, tiny_bundle
from tunekit.testing.options import evidence_in, own_options
from tunekit.values import Message, Sample
from tunekit_ppo import Ppo, PpoConfig, RolloutConfig
from tunekit_ppo.control import Control
from tunekit_ppo.endpoint import Endpoint
from tunekit_ppo.gathering import Rollout, Scored
from tunekit_ppo.needs import Sampled
from tunekit_ppo.rewarding import Rewarder, Rewards
from tunekit_ppo.rollouts import Rollouts
from tunekit_ppo.sampling import Sampler
from tunekit_ppo.testing import answers, asking
from tunekit_train import Batch, Provided, TokenValues

Run = Callable[..., Any]
SAMPLE = Sample((Message("user", "Two and two?"),), "Four.", "length", where="rows, row 1")


def loss_of(stage: Ppo) -> float:
    """The loss of made-up answers, whose probabilities and values have moved by 0.3 since their rollout."""
    objective, batch = stage.objective(), Batch(tuple(answers()))
    old, values = (torch.from_numpy(np.concatenate([getattr(item, name) for item in batch.items]))
                   for name in ("log_probs", "values"))  # fmt: skip
    entropies = torch.full_like(old, 2.0) if stage.config.entropy_coefficient else None
    given = {objective.needs[0]: Sampled(old + 0.3, entropies), TokenValues(): values + 0.3}
    return float(objective.sums(batch, Provided(given)).loss)


def expected_loss(clip: float = 0.2, value_clip: float = 0.2, value: float = 0.1, entropy: float = 0.0) -> float:
    """The same in loops."""
    total = 0.0
    for item in answers():
        for gain, kept, aim in zip(item.advantages, item.values, item.returns, strict=True):
            ratio = np.exp(np.float64(0.3))
            total -= min(ratio * gain, min(max(ratio, 1 - clip), 1 + clip) * gain)
            moved = max((kept + 0.3 - aim) ** 2, (kept + min(0.3, value_clip) - aim) ** 2)
            total += value * moved / 2 - entropy * 2.0
    return total


def the_loss_follows(name: str, option: str, *values: float) -> Callable[[Run, Path], None]:
    def check(run: Run, folder: Path) -> None:
        for value in values:
            found = loss_of(Ppo(**{option: value}))
            assert found == pytest.approx(expected_loss(**{name: value}), rel=1e-4)

    return check


def rollout_of() -> Rollout:
    """Two answers of 3 tokens and 1, with made-up figures."""
    dice = np.random.default_rng(4)
    scored = [Scored(item, *(dice.normal(size=count).astype(np.float32) for _ in range(3)))
              for item, count in zip(answers(), (3, 1), strict=False)]  # fmt: skip
    return Rollout([SAMPLE, SAMPLE], scored, {"x": [1.0, 2.0]}, [1.0, 2.0])


def items_of(**options: Any) -> list[Any]:
    """What PPO learns from in that rollout."""
    config = PpoConfig(**{"whiten_advantages": False, **options})
    return Rollouts(asking(2), config, Ppo().rules(), stage_context(folder=Path()))._items(rollout_of())


def advantages_in_loops(rewards: list[list[float]], gamma: float = 1.0, lam: float = 0.95) -> list[float]:
    found = []
    for scored, given in zip(rollout_of().scored, rewards, strict=True):
        values, ahead, row = [*scored.values.tolist(), 0.0], 0.0, []
        for at in reversed(range(len(given))):
            ahead = given[at] + gamma * values[at + 1] - values[at] + gamma * lam * ahead
            row.append(ahead)
        found += row[::-1]
    return found


def rewards_in_loops(coefficient: float = 0.05, penalty: Callable[[float], float] = lambda ratio: ratio) -> Any:
    rows = []
    for scored, total in zip(rollout_of().scored, (1.0, 2.0), strict=True):
        row = [-coefficient * penalty(float(mine - other)) for mine, other in zip(scored.log_probs, scored.reference,
               strict=True)]  # fmt: skip
        rows.append([*row[:-1], row[-1] + total])
    return rows


def gathered(items: list[Any], name: str = "advantages") -> list[float]:
    return np.concatenate([getattr(item, name) for item in items]).tolist()


def discount_and_trace_are_those_of_the_paper(run: Run, folder: Path) -> None:
    for gamma, lam in ((1.0, 0.95), (0.5, 0.95), (0.9, 0.3)):
        expected = advantages_in_loops(rewards_in_loops(), gamma, lam)
        assert gathered(items_of(discount=gamma, trace=lam)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def advantages_are_whitened(run: Run, folder: Path) -> None:
    plain, white = gathered(items_of()), gathered(items_of(whiten_advantages=True))
    expected = (np.array(plain) - np.mean(plain)) / np.std(plain)
    assert white == pytest.approx(expected.tolist(), rel=1e-4)
    assert gathered(items_of(), "returns") == gathered(items_of(whiten_advantages=True), "returns")


def rewards_are_whitened_around_their_mean(run: Run, folder: Path) -> None:
    rows = rewards_in_loops()
    flat = np.concatenate(rows)
    scaled = [[(value - flat.mean()) / flat.std() + flat.mean() for value in row] for row in rows]
    found = gathered(items_of(reward={"whiten": True}))
    assert found == pytest.approx(advantages_in_loops(scaled), rel=1e-4)


def the_penalty_is_taken_off_each_token(run: Run, folder: Path) -> None:
    kinds: dict[str, Callable[[float], float]] = {
        "k1": lambda ratio: ratio, "k2": lambda ratio: ratio**2 / 2, "k3": lambda ratio: np.exp(-ratio) - 1 + ratio,
    }  # fmt: skip
    for coefficient in (0.0, 0.3):
        for kind, penalty in kinds.items():
            expected = advantages_in_loops(rewards_in_loops(coefficient, penalty))
            found = gathered(items_of(kl={"coefficient": coefficient, "estimator": kind}))
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def the_coefficient_moves_towards_the_target(run: Run, folder: Path) -> None:
    def after(**options: Any) -> float:
        control = Control.of(PpoConfig(kl={"coefficient": 0.1, **options}).kl)
        control.update_(6.6, 100)
        return control.coefficient

    assert after() == 0.1
    assert after(control="adaptive") == pytest.approx(0.1 * (1 + 0.1 * 100 / 10_000))
    assert after(control="adaptive", target=33.0) == pytest.approx(0.1 * (1 - 0.2 * 100 / 10_000))
    assert after(control="adaptive", horizon=1000) == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))


def said(**options: Any) -> list[list[int]]:
    bundle = tiny_bundle()
    with torch.no_grad():
        found = Sampler(bundle, RolloutConfig(**options)).answer([[3, 4, 5], [7, 8], [9] * 6, [4] * 3], "seed")
    return [each.ids for each in found]


def greedy(count: int) -> list[list[int]]:
    """The likeliest tokens, one prompt and one token at a time."""
    bundle, found = tiny_bundle(), []
    for prompt in ([3, 4, 5], [7, 8], [9] * 6, [4] * 3):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + count and ids[-1] != bundle.tokenizer.eos_token_id:
                ids.append(int(bundle.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


def cold_answers_are_greedy(run: Run, folder: Path) -> None:
    assert said(temperature=1e-4, max_new_tokens=5) == greedy(5)
    assert said(max_new_tokens=5) != greedy(5)
    assert Ppo(rollout={"temperature": 0.5}).objective().needs[0].temperature == 0.5


def a_narrow_nucleus_is_greedy(run: Run, folder: Path) -> None:
    assert said(top_p=1e-6, max_new_tokens=5) == greedy(5)


def answers_are_as_long_as_they_may(run: Run, folder: Path) -> None:
    assert {len(ids) for ids in said(max_new_tokens=3, min_new_tokens=3)} == {3}
    lengths = [len(ids) for seed in range(1) for ids in said(max_new_tokens=9, min_new_tokens=7)]
    assert all(7 <= length <= 9 for length in lengths)


def prompts_are_answered_together(run: Run, folder: Path) -> None:
    for batch, calls in ((4, 1), (3, 2), (1, 4)):
        bundle, seen = tiny_bundle(), []
        plain = bundle.model.generate
        bundle.model.generate = lambda plain=plain, seen=seen, **given: (seen.append(1), plain(**given))[1]
        with torch.no_grad():
            Sampler(bundle, RolloutConfig(batch=batch, max_new_tokens=2)).answer([[3], [4, 5], [6], [7]], "seed")
        assert len(seen) == calls


def a_rollout_is_learnt_from_so_often(run: Run, folder: Path) -> None:
    ran = run({"epochs": 1, "rollout": {"prompts": 4, "epochs": 3}, "batch": {"rows": 2}})
    assert len(ran.steps("loss")) == 2 * 3 * 2  # rollouts x passes x steps of a pass
    assert len(ran.letters.asked) == 8


class Ones(Rewarder):
    name = "ones"

    def value(self, samples: Any) -> list[float]:
        return [1.0] * len(samples)


def rewards_are_weighed_scaled_and_clipped(run: Run, folder: Path) -> None:
    samples = [SAMPLE, replace(SAMPLE, finish="end")]
    for options, expected in (
        ({}, [1.0, 1.0]),
        ({"weight": 3.0}, [3.0, 3.0]),
        ({"scale": 0.5}, [0.5, 0.5]),
        ({"weight": -3.0, "clip": 2.0}, [-2.0, -2.0]),
        ({"missing_end": 0.25}, [0.75, 1.0]),
    ):
        config = PpoConfig(reward=options).reward
        rewards = Rewards([Ones()], config, stage_context(folder=folder))
        assert rewards.total(rewards.value(samples), samples) == pytest.approx(expected)


@contextmanager
def serving(answer: Callable[[int, Any], tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """A local endpoint; `answer` is given the number of the request and its body."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            code, body = answer(len(seen), seen[-1])
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *arguments: Any) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/reward", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lengths(number: int, body: Any) -> tuple[int, Any]:
    return 200, {"rewards": [len(each["answer"]) for each in body["samples"]]}


def an_endpoint_values_answers(run: Run, folder: Path) -> None:
    with serving(lengths) as (url, seen):
        ran = run({"reward": {"url": url}, "steps": 2})
    told = seen[0]["samples"][0]
    assert told["prompt"][-1] == {"role": "user", "content": ran.letters.asked[0].question}
    assert (told["answer"], told["where"]) == (ran.letters.asked[0].answer, ran.letters.asked[0].where)
    count = sum(len(sample.answer) for sample in ran.letters.asked[:8])
    assert ran.steps("reward_endpoint")[0] == pytest.approx(count / 8)
    assert ran.steps("reward")[0] == pytest.approx(count / 8 + ran.steps("reward_letters")[0])


def an_endpoint_is_tried_again(run: Run, folder: Path) -> None:
    def busy(number: int, body: Any) -> tuple[int, Any]:
        return (503, {}) if number < 2 else (200, {"rewards": [1.5]})

    with serving(busy) as (url, seen):
        with pytest.raises(TunekitError, match="no rewards at once: HTTPError"):
            Endpoint(url, 5.0, 0).value([SAMPLE])
        assert Endpoint(url, 5.0, 1).value([SAMPLE]) == [1.5]
    assert len(seen) == 2


def an_endpoint_is_waited_for_so_long(run: Run, folder: Path) -> None:
    def slow(number: int, body: Any) -> tuple[int, Any]:
        time.sleep(0.6)
        return lengths(number, body)

    with serving(slow) as (url, _):
        with pytest.raises(TunekitError, match="TimeoutError"):
            Endpoint(url, 0.1, 0).value([SAMPLE])
        assert Endpoint(url, 20.0, 0).value([SAMPLE]) == [5.0]


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (200, b"<html>", "answered b'<html>'; it has to answer"),
        (200, {"reward": [1]}, "it has to answer"),
        (200, {"rewards": [1, 2]}, "gave 2 rewards for 1 answers"),
        (404, {}, "gave no rewards at once: HTTPError: HTTP Error 404"),
    ],
)
def test_an_endpoint_that_does_not_answer_as_agreed_is_told_so_at_once(code: int, body: Any, message: str) -> None:
    with serving(lambda number, given: (code, body)) as (url, seen), pytest.raises(TunekitError, match=message):
        Endpoint(url, 5.0, 3).value([SAMPLE])
    assert len(seen) == 1


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(TunekitError, match=r"http://127.0.0.1:1/ gave no rewards at once: URLError.*raise reward"):
        Endpoint("http://127.0.0.1:1/", 1.0, 0).value([SAMPLE])


def the_reference_is_switched_off_or_copied(run: Run, folder: Path) -> None:
    short = {"steps": 2}
    assert run(short, "a").result.facts["reference"] == "switch_off"
    assert run({**short, "reference": "copied"}, "b").result.facts["reference"] == "copied"
    with pytest.raises(PlanError, match=r"stages.0.ppo.reference: is switch_off, and no adapter was attached"):
        run({**short, "reference": "switch_off"}, "c", adapter=False)


def the_first_step_moves_the_head_by_the_learning_rate(run: Run, folder: Path) -> None:
    for rate in (1e-2, 1e-4):
        ran = run({"learning_rate": rate, "steps": 1}, str(rate))
        moved = ran.result.bundle.model.value_head["default"].weight.detach().abs().median()
        assert float(moved) == pytest.approx(rate, rel=0.05)


EVIDENCE: dict[str, Callable[[Run, Path], None]] = {
    "learning_rate": the_first_step_moves_the_head_by_the_learning_rate,
    "clip": the_loss_follows("clip", "clip", 0.05, 0.2, 0.5),
    "value_clip": the_loss_follows("value_clip", "value_clip", 0.05, 0.2, 0.5),
    "value_coefficient": the_loss_follows("value", "value_coefficient", 0.0, 0.1, 1.0),
    "entropy_coefficient": the_loss_follows("entropy", "entropy_coefficient", 0.0, 0.5),
    "discount": discount_and_trace_are_those_of_the_paper,
    "trace": discount_and_trace_are_those_of_the_paper,
    "whiten_advantages": advantages_are_whitened,
    "reference": the_reference_is_switched_off_or_copied,
    "rollout.prompts": a_rollout_is_learnt_from_so_often,
    "rollout.epochs": a_rollout_is_learnt_from_so_often,
    "rollout.batch": prompts_are_answered_together,
    "rollout.max_new_tokens": answers_are_as_long_as_they_may,
    "rollout.min_new_tokens": answers_are_as_long_as_they_may,
    "rollout.temperature": cold_answers_are_greedy,
    "rollout.top_p": a_narrow_nucleus_is_greedy,
    "reward.url": an_endpoint_values_answers,
    "reward.timeout": an_endpoint_is_waited_for_so_long,
    "reward.retries": an_endpoint_is_tried_again,
    "reward.weight": rewards_are_weighed_scaled_and_clipped,
    "reward.scale": rewards_are_weighed_scaled_and_clipped,
    "reward.clip": rewards_are_weighed_scaled_and_clipped,
    "reward.missing_end": rewards_are_weighed_scaled_and_clipped,
    "reward.whiten": rewards_are_whitened_around_their_mean,
    "kl.coefficient": the_penalty_is_taken_off_each_token,
    "kl.estimator": the_penalty_is_taken_off_each_token,
    "kl.control": the_coefficient_moves_towards_the_target,
    "kl.target": the_coefficient_moves_towards_the_target,
    "kl.horizon": the_coefficient_moves_towards_the_target,
}


def checks() -> list[Callable[[Run, Path], None]]:
    """Each check once: several options may share one."""
    return list(dict.fromkeys(EVIDENCE.values()))


@pytest.mark.parametrize("check", checks(), ids=lambda check: getattr(check, "__name__", "check"))
def test_options_act(check: Callable[[Run, Path], None], run_ppo: Run, tmp_path: Path) -> None:
    check(run_ppo, tmp_path)


def test_every_option_has_such_a_check() -> None:
    """Here, or with rewards that are trained models."""
    assert set(own_options(Ppo)) == {*EVIDENCE, "reward.adapter", "reward.model"}
    assert {"reward.adapter", "reward.model"} <= evidence_in(Path(__file__).parent).keys()
