"""What was prepared as something else than was asked for is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from tunekit.errors import TunekitError
from tunekit_train.parallel import Parallel


def test_a_model_that_transformers_spreads_over_several_gpus_is_refused_with_what_does_it(
    run_training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)  # as on a machine with two; transformers then wraps the model
    told = (
        "training in one process was asked for, but the model is prepared as DataParallel; "
        "show it one: CUDA_VISIBLE_DEVICES=0; or name `ddp` in use"
    )
    with pytest.raises(TunekitError) as caught:
        run_training(steps=1)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["DistributedDataParallel", "DeepSpeedEngine"])
def test_a_model_that_settings_have_prepared_for_several_processes_is_refused_in_one(name: str) -> None:
    wrapped = type(name, (torch.nn.Module,), {})()
    assert Parallel().mistake(wrapped) == name
    assert "settings of accelerate or DeepSpeed" in Parallel().remedy(name)
    assert Parallel().mistake(torch.nn.Linear(2, 2)) is None
