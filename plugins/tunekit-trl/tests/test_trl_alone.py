"""A stage reaches the weights that TRL reaches alone with the same model, prompts, rewards, options and seed."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit_trl import Grpo, Rloo

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # TRL alone says so

TOLERANCE = 1e-7
"""Steps are of 1e-2: the same computations in the same order."""
COMMON = {"learning_rate": 1e-2, "max_completion_length": 6, "num_generations": 4, "num_iterations": 2, "beta": 0.2}
OURS = {"batch": {"rows": 4, "accumulation": 2}, "schedule": {"shape": "linear", "warmup_steps": 1}}
THEIRS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 1,
    "max_steps": 4,
}


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("stage", [Grpo, Rloo])
def test_the_weights_are_those_of_trl(setting: Any, distance: Any, stage: Any, adapter: bool) -> None:
    world = setting(adapter=adapter)
    tuned = world.tune(stage(steps=4, **COMMON, **OURS))
    alone = world.alone(range(4), rloo=stage is Rloo, **COMMON, **THEIRS)
    assert distance(tuned.weights, alone) < TOLERANCE
    assert distance(tuned.weights, world.tune(stage(steps=1, **COMMON, **OURS), "other").weights) > 1e-3
