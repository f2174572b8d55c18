"""A whole step is TRL's: loss, gradients and rewards on the same model and tokens, ours end to end, theirs padded."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tunekit.values import Item, TokenSequence
from tunekit_dpo import Cpo, Dpo, Orpo, Simpo
from tunekit_dpo.names import LossName
from tunekit_train.suite import Bench, Outcome
from tunekit_train.testing import VOCABULARY, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of TRL
NAMES: tuple[LossName, ...] = get_args(LossName)
TRL_NAMES = {"exo": "exo_pair", "bco": "bco_pair", "nca": "nca_pair", "sppo": "sppo_hard"}
DEFAULTS: dict[str, Any] = {
    "loss_types": ["sigmoid"],
    "loss_weights": [1.0],
    "beta": 0.1,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
}


def pairs(count: int, prompt: int | None = None, chosen: int | None = None) -> list[Item]:
    """A prompt each, and two answers to it; of random lengths, where none is given."""
    dice = random.Random(4)

    def words(length: int | None) -> list[int]:
        return [dice.randrange(3, VOCABULARY) for _ in range(length or dice.randint(1, 9))]

    def answer(row: int, before: list[int], ids: list[int]) -> TokenSequence:
        return TokenSequence(before + ids, [0.0] * len(before) + [1.0] * len(ids), row, "a test")

    made = []
    for row in range(count):
        before = words(prompt)
        made.append(Item((answer(row, before, words(chosen)), answer(row, before, words(None)))))
    return made


def parted(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """The prompt and the answer."""
    start = list(sequence.weights).index(1.0)
    ids = list(map(int, sequence.ids))
    return ids[:start], ids[start:]


PAIRS, EVEN = pairs(4), pairs(4, prompt=1, chosen=5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A policy of which all weights train, moved away from its reference."""
    return Bench(Dpo().objective(), [*PAIRS, *EVEN], tiny_llama(), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def trainer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's DPOTrainer on the same policy and reference."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer

        folder = tmp_path_factory.mktemp("trl")
        options = DPOConfig(str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
        row = Dataset.from_list([{"prompt": "t3", "chosen": " t4", "rejected": " t5"}])
        policy, reference = tiny_llama(), tiny_llama()
        policy.load_state_dict(bench.model.state_dict())
        made = DPOTrainer(policy, reference, options, train_dataset=row, processing_class=tiny_tokenizer())
    return made


def ours(bench: Bench, stage: Any, items: list[Item] = PAIRS) -> Outcome:
    """The mean loss of the items, its gradients, and metrics."""
    bench.objective = stage.objective()
    found = bench.run([items])
    return Outcome(
        found.loss / len(items), found.metrics, {name: each / len(items) for name, each in found.gradients.items()}
    )


def theirs(trainer: Any, items: list[Item], **options: Any) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    vars(trainer).update({**DEFAULTS, **options})
    rows = []
    for item in items:
        (prompt, chosen), (_, rejected) = map(parted, item.sequences)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    told = trainer._metrics["eval" if not trainer.model.training else "train"]
    told.clear()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    return loss.detach(), gradients(trainer.model, loss), {name: values[-1] for name, values in told.items()}


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: each.grad.clone() for name, each in model.named_parameters()}


def assert_same(found: Outcome, loss: Tensor, expected: Mapping[str, Tensor]) -> None:
    """In fp32, summed in another order."""
    assert float(found.loss) == pytest.approx(float(loss), rel=2e-5)
    assert found.gradients.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 1e-4, "there is something to compare"
    for name, gradient in expected.items():
        assert torch.allclose(found.gradients[name], gradient, atol=2e-5 * largest, rtol=1e-3), name


@pytest.mark.parametrize("name", NAMES)
def test_loss_gradients_and_rewards_are_those_of_trl(name: LossName, bench: Bench, trainer: Any) -> None:
    smoothing = {"robust": 0.1, "exo": 1e-3, "aot": 0.1, "aot_unpaired": 0.1}.get(name, 0.0)
    found = ours(bench, Dpo(beta=0.3, loss=name, label_smoothing=smoothing))
    options = {"loss_types": [TRL_NAMES.get(name, name)], "beta": 0.3, "label_smoothing": smoothing}
    loss, expected, told = theirs(trainer, PAIRS, **options)
    assert_same(found, loss, expected)
    for mine, other in (
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
        ("log_prob_chosen", "logps/chosen"),
        ("log_prob_rejected", "logps/rejected"),
    ):
        total, weight = found.metrics[mine]
        assert total / weight == pytest.approx(told[other], rel=1e-4, abs=1e-5), mine


DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js": {"f_divergence_type": "js_divergence"},
    "alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
}


@pytest.mark.parametrize(
    ("name", "divergence"),
    [
        *(("sigmoid", divergence) for divergence in DIVERGENCES),
        *((name, "alpha") for name in ("sigmoid_norm", "hinge", "ipo", "robust", "exo", "discopop")),
    ],
)
def test_divergences_are_those_of_trl(name: LossName, divergence: Any, bench: Bench, trainer: Any) -> None:
    smoothing = {"robust": 0.1, "exo": 1e-3}.get(name, 0.0)
    alpha = {"divergence_alpha": 0.3} if divergence == "alpha" else {}
    found = ours(bench, Dpo(loss=name, label_smoothing=smoothing, divergence=divergence, **alpha))
    options = {"loss_types": [TRL_NAMES.get(name, name)], "label_smoothing": smoothing, **DIVERGENCES[divergence]}
    loss, expected, _ = theirs(trainer, PAIRS, **options)
    assert_same(found, loss, expected)


@pytest.mark.parametrize("name", ["ipo", "aot"])
def test_tails_that_count_less_are_those_of_trl(name: LossName, bench: Bench, trainer: Any) -> None:
    found = ours(bench, Dpo(loss=name, tail_weight=0.4))
    loss, expected, _ = theirs(trainer, PAIRS, loss_types=[TRL_NAMES.get(name, name)], ld_alpha=0.4)
    assert_same(found, loss, expected)


def test_a_mixture_with_a_likelihood_term_is_that_of_trl(bench: Bench, trainer: Any) -> None:
    """One pair: TRL's likelihood is a mean over the tokens of a batch, ours a mean over answers."""
    items = PAIRS[:1]
    found = ours(bench, Dpo(loss={"sigmoid": 0.8, "bco": 0.2}, sft_weight=0.7), items)
    weights = {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.7]}
    loss, expected, _ = theirs(trainer, items, **weights)
    assert_same(found, loss, expected)


REFERENCE_FREE: list[tuple[Any, str, dict[str, Any]]] = [
    (Orpo(beta=0.6), "orpo", {"beta": 0.6}),
    (Cpo(beta=0.4), "cpo", {"loss_type": "sigmoid", "beta": 0.4, "cpo_alpha": 1.0}),
    (
        Cpo(beta=0.4, label_smoothing=0.1, sft_weight=0.5),
        "cpo",
        {"loss_type": "sigmoid", "beta": 0.4, "cpo_alpha": 0.5, "label_smoothing": 0.1},
    ),
    (Simpo(), "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    (
        Simpo(beta=1.5, gamma=0.7, sft_weight=0.3),
        "cpo",
        {"loss_type": "simpo", "beta": 1.5, "simpo_gamma": 0.7, "cpo_alpha": 0.3},
    ),
]


@pytest.mark.parametrize(("stage", "module", "options"), REFERENCE_FREE)
def test_losses_without_a_reference_are_those_of_trl(
    stage: Any, module: str, options: dict[str, Any], bench: Bench
) -> None:
    """Prompts of one token, which TRL's ORPO trains too from the second on, and chosen answers of one length."""
    found = ours(bench, stage, EVEN)
    model = tiny_llama()
    model.load_state_dict(bench.model.state_dict())
    loss, _ = reference_free(module, options).get_batch_loss_metrics(model, padded(EVEN), "train")
    assert_same(found, loss.detach(), gradients(model, loss))


def reference_free(module: str, options: dict[str, Any]) -> Any:
    """A trainer of TRL that has what its loss reads, and no data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = getattr(importlib.import_module(f"trl.experimental.{module}"), f"{module.upper()}Trainer")
    made = kind.__new__(kind)
    gather: Callable[[Tensor], Tensor] = lambda value: value  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=gather)
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "aux_loss_enabled": False, "is_encoder_decoder": False}
    vars(made).update({**defaults, "accelerator": accelerator, "padding_value": 0, "pad_token_id": 0, **options})
    return made


def padded(items: list[Item]) -> dict[str, Tensor]:
    """What TRL's collator makes of pairs."""
    batch = {}
    for place, side in enumerate(("chosen", "rejected")):
        rows = [item.sequences[place] for item in items]
        longest = max(map(len, rows))
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            batch[f"{side}_{key}"] = torch.full((len(rows), longest), fill)
        for at, row in enumerate(rows):
            ids, real = torch.tensor(list(map(int, row.ids))), slice(0, len(row))
            batch[f"{side}_input_ids"][at, real] = ids
            batch[f"{side}_attention_mask"][at, real] = 1
            batch[f"{side}_labels"][at, real] = ids.where(torch.tensor(list(row.weights)) > 0, -100)
    return batch
