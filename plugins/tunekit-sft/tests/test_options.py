"""Every option of both stages acts: by an oracle on the same tokens, or by what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit.testing.options import own_options
from tunekit.values import Event, Example, Examples, Item, Message, TokenSequence
from tunekit_sft import Pretrain, Sft
from tunekit_train import Batch, Forward, Provided
from tunekit_train.forward import choose_strategy, prepared
from tunekit_train.testing import bundle, context, random_items, tiny_llama, tiny_tokenizer

Evidence = Callable[[Path], None]
EVIDENCE: dict[tuple[type, str], Evidence] = {}


def evidence(stage: type, option: str) -> Callable[[Evidence], Evidence]:
    """Register what shows that an option of a stage acts."""

    def register(function: Evidence) -> Evidence:
        EVIDENCE[stage, option] = function
        return function

    return register


@pytest.mark.parametrize(
    ("stage", "option"), [(stage, option) for stage in (Sft, Pretrain) for option in own_options(stage)]
)
def test_an_option_acts(stage: type, option: str, tmp_path: Path) -> None:
    assert (stage, option) in EVIDENCE, f"nothing shows that {option} of {stage.__name__} acts"
    EVIDENCE[stage, option](tmp_path)


def gradients(stage: Any, items: list[Item]) -> list[Tensor]:
    """The gradients of a stage's mean loss, as the engine comes to them."""
    model, objective, batch = tiny_llama(), stage.objective(), Batch(tuple(items))
    strategy = choose_strategy(model, "auto", 0, "stages.0")
    with prepared(model, strategy, autocast=False):
        forward = Forward(model, batch, strategy.lay_out(batch), objective.needs)
        provided = Provided({need: need.provide(forward) for need in objective.needs})
        (objective.sums(batch, provided).loss / objective.weight(batch)).backward()
    return gradients_of(model)


def gradients_by_hand(sequences: list[TokenSequence], loss: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The same by a plain call of the model for each sequence; `loss` gives that of each token, [tokens]."""
    model = tiny_llama()
    total, weight = torch.zeros(()), 0.0
    for sequence in sequences:
        ids, weights = torch.as_tensor(sequence.ids).long(), torch.as_tensor(sequence.weights).float()
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total = total + (weights[1:] * loss(logits, ids[1:])).sum()
        weight += float(weights.sum())
    (total / weight).backward()
    return gradients_of(model)


def gradients_of(model: Any) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def minus_log_p(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def sequences_of(items: list[Item]) -> list[TokenSequence]:
    return [sequence for item in items for sequence in item.sequences]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-6, rtol=1e-4) for one, other in zip(found, expected, strict=True))


def documents(texts: list[str]) -> Examples:
    return Examples.of(Example(row, f"rows.json, row {row}", text=text) for row, text in enumerate(texts, 1))


def blocks(stage: Pretrain, texts: list[str]) -> list[Item]:
    return list(stage.tunekit_prepare_data(documents(texts), tiny_tokenizer(), context(Path())))


@evidence(Sft, "supervise")
def it_names_the_turns_with_a_loss(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    roles = ("user", "assistant", "user", "assistant")
    talk = Example(1, "row 1", tuple(Message(role, f"t{10 + at}") for at, role in enumerate(roles)))  # type: ignore[arg-type]
    for rule, words in {"assistant": {11, 13}, "last": {13}, "all": {10, 11, 12, 13}}.items():
        (item,) = Sft(supervise=rule).tunekit_prepare_data(Examples.of([talk]), tokenizer, context(folder))
        (sequence,) = item.sequences
        learnt = {int(token) for token, weight in zip(sequence.ids, sequence.weights, strict=True) if weight}
        assert {token for token in learnt if token >= 10} == words


@evidence(Sft, "loss")
def dft_weighs_each_token_by_its_probability(folder: Path) -> None:
    def by_hand(logits: Tensor, targets: Tensor) -> Tensor:
        losses = minus_log_p(logits, targets)
        return losses * (-losses).exp().detach()

    items = random_items(4)
    found = gradients(Sft(loss="dft"), items)
    assert same(found, gradients_by_hand(sequences_of(items), by_hand))
    assert not same(found, gradients(Sft(), items))


@evidence(Sft, "label_smoothing")
def smoothing_is_that_of_torch(folder: Path) -> None:
    items = random_items(4)
    found = gradients(Sft(label_smoothing=0.3), items)
    assert same(found, gradients_by_hand(sequences_of(items), lambda logits, to: minus_log_p(logits, to, 0.3)))
    assert not same(found, gradients(Sft(), items))


@evidence(Sft, "token_accuracy")
def accuracy_is_told_of_steps_and_evaluations(folder: Path) -> None:
    events: list[Event] = []
    stage = Sft(epochs=25, learning_rate=1e-2, token_accuracy=True, evaluate={"share": 0.2})
    data = documents([f"t{10 + row % 2} t20 t21 t22 t23" for row in range(10)])
    surroundings = context(folder, events)
    items = stage.tunekit_prepare_data(data, tiny_tokenizer(), surroundings)
    result = stage.tunekit_train_stage(bundle(tiny_llama()), items, surroundings)
    told = [event.metrics["token_accuracy"] for event in events if event.kind == "step"]
    held = [event.metrics["eval_token_accuracy"] for event in events if event.kind == "evaluated"]
    model = result.bundle.model
    right = []
    for sequence in sequences_of(list(items)):
        ids = torch.as_tensor(sequence.ids).long()
        with torch.no_grad():
            right += (model(input_ids=ids[None]).logits[0, :-1].argmax(-1) == ids[1:]).tolist()
    assert told[0] < 0.3
    assert told[-1] > 0.9
    assert held[-1] == pytest.approx(sum(right) / len(right), abs=0.01)


@evidence(Pretrain, "block")
def blocks_have_so_many_tokens(folder: Path) -> None:
    texts = ["t5 " * 20, "t6 " * 9]  # with the end token of each 31 tokens
    for block, expected in ((10, [10, 10, 10, 1]), (16, [16, 15]), (31, [31])):
        assert [item.tokens for item in blocks(Pretrain(block=block), texts)] == expected
    assert [item.tokens for item in blocks(Pretrain(batch={"max_length": 21}), texts)] == [21, 10]


@evidence(Pretrain, "cross_documents")
def attention_crosses_documents_or_does_not(folder: Path) -> None:
    texts = ["t5 t6 t7", "t8 t9 t10 t11", "t12 t13"]  # 12 tokens with the end token behind each
    apart, across = Pretrain(block=12), Pretrain(block=12, cross_documents=True)
    ids = [[5, 6, 7, 2], [8, 9, 10, 11, 2], [12, 13, 2]]
    alone = [TokenSequence(each, [0.0] + [1.0] * (len(each) - 1), 1, "by hand") for each in ids]
    whole = TokenSequence([token for each in ids for token in each], [0.0] + [1.0] * 11, 1, "by hand")
    assert same(gradients(apart, blocks(apart, texts)), gradients_by_hand(alone, minus_log_p))
    assert same(gradients(across, blocks(across, texts)), gradients_by_hand([whole], minus_log_p))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sft(loss="dft", label_smoothing=0.1), "label_smoothing acts only with loss cross_entropy"),
        (lambda: Pretrain(block=2048), "block is 2048, and batch.max_length 1024"),
        (lambda: Pretrain(batch={"too_long": "split"}), "none is too long for blocks"),
    ],
)
def test_options_that_do_not_go_together_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
