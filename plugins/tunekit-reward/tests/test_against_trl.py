"""A whole step is TRL's: loss, gradients and rewards on the same model and tokens, ours end to end, theirs padded."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from tunekit.values import Item
from tunekit_reward import Reward
from tunekit_train import ValueHead
from tunekit_train.heads import head_of, is_head
from tunekit_train.suite import Bench
from tunekit_train.testing import random_items, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of TRL


def pairs() -> list[Item]:
    singles = [item.sequences[0] for item in random_items(8)]
    sides = zip(singles[::2], singles[1::2], (0.5, 0.0, 2.0, 1.0), strict=True)
    return [Item((first, second), margin=margin) for first, second, margin in sides]


def head(bench: Bench) -> ValueHead:
    found = head_of(bench.model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A reward model of which all weights train; its head has no offset, as that of TRL."""
    made = Bench(Reward().objective(), pairs(), tiny_llama(), tmp_path_factory.mktemp("bench"))
    torch.nn.init.zeros_(head(made).offset)
    torch.nn.init.normal_(head(made).weight)
    return made


@pytest.fixture(scope="module")
def trainer(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's RewardTrainer on a classifier of the same weights."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import RewardConfig, RewardTrainer

        model = LlamaForSequenceClassification(bench.model.config)
        model.score = torch.nn.Linear(model.score.in_features, 1, bias=False)
        model.num_labels = model.config.num_labels = 1
        model.model.load_state_dict(bench.model.model.state_dict())
        model.score.weight.data.copy_(head(bench).weight)
        folder = str(tmp_path_factory.mktemp("trl"))
        options = RewardConfig(folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
        row = Dataset.from_list([{"chosen": "t4", "rejected": "t5"}])
        return RewardTrainer(model, options, train_dataset=row, processing_class=tiny_tokenizer())


@pytest.mark.parametrize(("margin", "centring"), [(0.0, 0.0), (1.0, 0.0), (2.0, 0.3)])
def test_loss_gradients_and_rewards_are_those_of_trl(
    margin: float, centring: float, bench: Bench, trainer: Any
) -> None:
    bench.objective = Reward(margin_weight=margin, centring=centring).objective()
    found, count = bench.run([bench.items]), len(bench.items)
    trainer.args.center_rewards_coefficient = centring or None
    rows = []
    for item in bench.items:
        chosen, rejected = (list(map(int, each.ids)) for each in item.sequences)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected, "margin": margin * (item.margin or 0.0)})
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected.backward()
    assert float(found.loss) / count == pytest.approx(float(expected.detach()), rel=2e-5)
    (scoring,) = (name for name in found.gradients if is_head(name) and name.endswith(".weight"))
    for name, parameter in trainer.model.named_parameters():
        own = found.gradients[scoring if name == "score.weight" else name] / count
        torch.testing.assert_close(own, parameter.grad, atol=2e-6, rtol=1e-3)
    told = next(iter(values for values in trainer._metrics.values() if values))
    for mine in ("accuracy", "margin"):
        assert found.metrics[mine].total / count == pytest.approx(told[mine][-1], rel=1e-4)
