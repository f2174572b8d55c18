"""A whole step is TRL's: loss, gradients and rewards on the same model and tokens, ours end to end, theirs padded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from tunekit.values import Item, TokenSequence
from tunekit_kto import Kto
from tunekit_kto.mismatch import MismatchedItems
from tunekit_train import Items
from tunekit_train.suite import Bench
from tunekit_train.testing import CrossEntropy, random_items, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of TRL


def labelled() -> list[Item]:
    """Five good and bad answers, all of whose tokens count alike, each beside a mismatched one."""
    singles = [item.sequences[0] for item in random_items(5)]
    whole = [replace(each, weights=[float(weight > 0) for weight in each.weights]) for each in singles]
    items = [Item((each,), label=number % 3 != 0) for number, each in enumerate(whole)]
    return list(MismatchedItems(Items(items), seed=0, max_length=64))


def parted(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """The prompt and the answer."""
    start = [float(weight) for weight in sequence.weights].index(1.0)
    ids = list(map(int, sequence.ids))
    return ids[:start], ids[start:]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A policy of which all weights train, moved from its reference towards all answers: the KL term is above 0."""
    made = Bench(Kto().objective(), labelled(), tiny_llama(), tmp_path_factory.mktemp("bench"))
    objective, made.objective = made.objective, CrossEntropy()
    gradients = made.run([made.items]).gradients
    with torch.no_grad():
        for name, parameter in made.trained.items():
            parameter -= 0.01 * gradients[name]
    made.objective = objective
    return made


@pytest.fixture(scope="module")
def trainer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's KTOTrainer on the same policy and reference."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import KTOConfig, KTOTrainer

        folder = str(tmp_path_factory.mktemp("trl"))
        options = KTOConfig(folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
        row = {"prompt": "t3", "completion": " t4", "label": True}
        policy, reference = tiny_llama(), tiny_llama()
        policy.load_state_dict(bench.model.state_dict())
        data = Dataset.from_list([row, {**row, "label": False}])
        return KTOTrainer(policy, reference, options, train_dataset=data, processing_class=tiny_tokenizer())


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_loss_gradients_and_rewards_are_those_of_trl(
    loss: Any, weights: tuple[float, float], bench: Bench, trainer: Any
) -> None:
    good, bad = weights
    bench.objective = Kto(loss=loss, beta=0.3, desirable_weight=good, undesirable_weight=bad).objective()
    found, count = bench.run([bench.items]), len(bench.items)
    trainer.loss_type, trainer.calculate_KL, trainer.beta = loss, loss == "kto", 0.3
    trainer.desirable_weight, trainer.undesirable_weight = weights
    rows = []
    for item in bench.items:
        (prompt, own), (_, other) = map(parted, item.sequences)
        rows.append({"prompt_ids": prompt, "completion_ids": own, "KL_completion_ids": other, "label": item.label})
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected.backward()
    assert float(found.loss) / count == pytest.approx(float(expected.detach()), rel=2e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(found.gradients[name] / count, parameter.grad, atol=2e-7, rtol=1e-3)
    told = next(iter(values for values in trainer._metrics.values() if values))
    for mine, other in (("reward_good", "rewards/chosen"), ("log_prob_bad", "logps/rejected")):
        total, weight = found.metrics[mine]
        assert total / weight == pytest.approx(told[other][-1], rel=1e-4)
    if loss == "kto":
        assert float(told["kl"][-1]) > 0.01, "there is a KL term to compare"
        assert found.metrics["kl"].total / count == pytest.approx(told["kl"][-1], rel=1e-4)
