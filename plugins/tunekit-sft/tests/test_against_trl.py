"""A whole step is TRL's: loss and gradients on the same model and tokens, ours end to end, theirs padded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.values import Item
from tunekit_sft import Sft
from tunekit_train.suite import Bench
from tunekit_train.testing import random_items, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of TRL


def items() -> list[Item]:
    """Sequences whose supervised tokens count alike: TRL has no weights."""
    singles = [item.sequences[0] for item in random_items(5)]
    return [Item((replace(each, weights=[float(weight > 0) for weight in each.weights]),)) for each in singles]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's SFTTrainer on the same kind of model."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import SFTConfig, SFTTrainer

        folder = str(tmp_path_factory.mktemp("trl"))
        options = SFTConfig(folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
        row = Dataset.from_list([{"text": "t4 t5"}])
        return SFTTrainer(tiny_llama(), options, train_dataset=row, processing_class=tiny_tokenizer())


@pytest.mark.parametrize(
    ("options", "loss_type", "smoothing"),
    [({}, "nll", 0.0), ({"loss": "dft"}, "dft", 0.0), ({"label_smoothing": 0.2}, "nll", 0.2)],
    ids=["cross_entropy", "dft", "label_smoothing"],
)
def test_loss_and_gradients_are_those_of_trl(
    options: dict[str, Any], loss_type: str, smoothing: float, trainer: Any, tmp_path: Path
) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    bench = Bench(Sft(**options).objective(), items(), tiny_llama(), tmp_path)
    trainer.model.load_state_dict(bench.model.state_dict())
    found = bench.run([bench.items])
    weight = sum(sum(item.sequences[0].weights) for item in bench.items)
    trainer.args.loss_type, trainer.label_smoother = loss_type, LabelSmoother(smoothing) if smoothing else None
    rows = [
        {
            "input_ids": list(map(int, each.ids)),
            "labels": [token if real else -100 for token, real in zip(map(int, each.ids), each.weights, strict=True)],
        }
        for each in (item.sequences[0] for item in bench.items)
    ]
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected.backward()
    assert float(found.loss) / weight == pytest.approx(float(expected.detach()), rel=2e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(found.gradients[name] / weight, parameter.grad, atol=2e-7, rtol=1e-3)
