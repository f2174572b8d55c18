"""Every option of the stage acts: by TRL's loss on the same rewards, by the formula, or by the trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.testing.options import own_options
from tunekit_reward import Reward
from tunekit_train import Batch, Item, Provided, SequenceValues, train
from tunekit_train.testing import bundle, context, random_items, tiny_llama

Trl = Callable[..., float]
CHOSEN, REJECTED = torch.tensor([0.7, -0.3, 2.0]), torch.tensor([0.1, 0.4, -1.0])
MARGINS = (None, 0.5, 1.0)


def pairs(margins: tuple[float | None, ...] = (None,) * 3) -> list[Item]:
    singles = [item.sequences[0] for item in random_items(2 * len(margins))]
    each = zip(singles[::2], singles[1::2], margins, strict=True)
    return [Item((first, second), margin=margin) for first, second, margin in each]


def loss_of(stage: Reward, margins: tuple[float | None, ...] = (None,) * 3) -> float:
    """What the engine would make of these rewards."""
    objective, batch = stage.objective(), Batch(tuple(pairs(margins)))
    values = torch.stack([CHOSEN, REJECTED], 1).reshape(-1)
    return float(objective.sums(batch, Provided({SequenceValues(): values})).loss) / objective.weight(batch)


def margins_are_asked_for_as_in_trl(trl_loss: Trl, folder: Path) -> None:
    asked = torch.tensor([0.0, 0.5, 1.0])
    for weight in (0.0, 1.0, 2.0):
        expected = trl_loss(CHOSEN, REJECTED, weight * asked)
        assert loss_of(Reward(margin_weight=weight), MARGINS) == pytest.approx(expected, rel=1e-6)


def centring_is_that_of_trl(trl_loss: Trl, folder: Path) -> None:
    for centring in (0.0, 0.4):
        expected = trl_loss(CHOSEN, REJECTED, None, centring)
        assert loss_of(Reward(centring=centring)) == pytest.approx(expected, rel=1e-6)


def smoothing_mixes_in_the_pair_the_other_way_round(trl_loss: Trl, folder: Path) -> None:
    expected = 0.9 * trl_loss(CHOSEN, REJECTED) + 0.1 * trl_loss(REJECTED, CHOSEN)
    assert loss_of(Reward(label_smoothing=0.1)) == pytest.approx(expected, rel=1e-6)


def the_first_step_moves_the_head_by_the_learning_rate(trl_loss: Trl, folder: Path) -> None:
    for rate in (1e-2, 1e-4):
        made = bundle(tiny_llama())
        config = Reward(learning_rate=rate, steps=1, schedule={"shape": "constant"}).config
        train(Reward().objective(), pairs(), made, config, context(folder / str(rate)))
        moved = made.model.value_head.default.weight.detach().abs().median()
        assert float(moved) == pytest.approx(rate, rel=0.02)


EVIDENCE: dict[str, Callable[[Trl, Path], None]] = {
    "margin_weight": margins_are_asked_for_as_in_trl,
    "centring": centring_is_that_of_trl,
    "label_smoothing": smoothing_mixes_in_the_pair_the_other_way_round,
    "learning_rate": the_first_step_moves_the_head_by_the_learning_rate,
}


@pytest.mark.parametrize("option", own_options(Reward))
def test_an_option_acts(option: str, trl_loss: Any, tmp_path: Path) -> None:
    assert option in EVIDENCE, f"nothing shows that {option} acts"
    EVIDENCE[option](trl_loss, tmp_path)
