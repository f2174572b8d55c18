"""What TRL's config classes are told: the options of the stage, and everything that is tunekit's to decide."""

from __future__ import annotations

from typing import Any

from .options import GrpoConfig
from .session import Session

SAME = (
    "learning_rate",
    "max_grad_norm",
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "num_iterations",
    "beta",
    "epsilon",
    "epsilon_high",
    "mask_truncated_completions",
    "disable_dropout",
)
GRPO = (
    "loss_type",
    "scale_rewards",
    "importance_sampling_level",
    "delta",
    "entropy_coef",
    "top_entropy_quantile",
    "multi_objective_aggregation",
)
RLOO = ("normalize_advantages", "reward_clip_range")
"""Options of the same name and meaning there: of both trainers, and of each."""


def make_arguments(session: Session, names: list[str], resumed: bool) -> Any:
    """The config object of TRL's trainer. `names` are those of the rewards, in their order."""
    from trl import GRPOConfig, RLOOConfig  # type: ignore[attr-defined]

    config = session.config
    grpo = isinstance(config, GrpoConfig)
    own = {name: getattr(config, name) for name in (*SAME, *(GRPO if grpo else RLOO))}
    weights = [config.reward_weights.get(name, 1.0) for name in names]
    make = GRPOConfig if grpo else RLOOConfig
    return make(**_surroundings(session, resumed), **own, **config.trl, reward_weights=weights)


def _surroundings(session: Session, resumed: bool) -> dict[str, Any]:
    """When it logs, evaluates and saves is `Rhythm`'s to say; the order of the prompts is the session's."""
    config, precision = session.config, session.bundle.precision
    autocast = precision.compute if precision.autocast else "float32"
    return {
        "output_dir": str(session.checkpoints.partial),
        "per_device_train_batch_size": config.batch.rows,
        "per_device_eval_batch_size": config.batch.rows,
        "gradient_accumulation_steps": config.batch.accumulation,
        "steps_per_generation": config.micro_batches,
        "max_steps": session.total_steps,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": True,
        "eval_on_start": config.evaluate.at_start and not resumed,
        "run_name": f"{session.context.folder.parent.name}-{session.context.folder.name}",
        "disable_tqdm": True,
        "report_to": list(config.log.trackers) or "none",
        "seed": session.context.seed,
        "use_cpu": precision.device == "cpu",
        "bf16": autocast == "bfloat16",
        "fp16": autocast == "float16" and precision.device != "cpu",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
