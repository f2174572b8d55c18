"""Optimiser states, gradients and weights in parts: ZeRO, through DeepSpeed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tunekit_train import Job

from . import ZeroConfig
from .group import Group
from .leaves import leaf_classes, not_whole


class ZeroRedundancy(Group):
    """ZeRO of one stage, prepared by accelerate."""

    def __init__(self, config: ZeroConfig) -> None:
        self.config = config
        self.name = f"zero{config.stage}"

    def arguments(self, job: Job) -> dict[str, Any]:
        """The configuration of DeepSpeed."""
        return {"deepspeed": self._settings(job)}

    def _settings(self, job: Job) -> dict[str, Any]:
        precision, batch = job.bundle.precision, job.config.batch
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": batch.rows,
            "gradient_accumulation_steps": batch.accumulation // self.count,
            "gradient_clipping": job.config.max_grad_norm,
            "zero_optimization": self._parts(job.bundle.model),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # the optimiser is the recipe's
        }
        if precision.weights == "bfloat16":
            settings["bf16"] = {"enabled": True}  # what trains is bf16 in products, and fp32 in the optimiser
        elif precision.autocast:
            settings["torch_autocast"] = {"enabled": True, "dtype": precision.compute}
        return settings

    def _parts(self, model: Any) -> dict[str, Any]:
        parts: dict[str, Any] = {"stage": self.config.stage}
        if self.config.stage == 3:
            if leaves := leaf_classes(model):
                parts["leaf_module"] = {"classes": leaves}
            parts["stage3_param_persistence_threshold"] = self.config.keep_whole
            parts["stage3_gather_16bit_weights_on_model_save"] = True
        return parts

    def mistake(self, prepared: Any) -> str | None:
        """Anything but DeepSpeed's engine of this stage, which gathers blocks of experts whole in the third."""
        from deepspeed import DeepSpeedEngine  # type: ignore[import-not-found, import-untyped]

        if not isinstance(prepared, DeepSpeedEngine):
            return type(prepared).__name__
        stage = prepared.zero_optimization_stage()
        if stage != self.config.stage:
            return f"ZeRO of stage {stage}"
        torn = not_whole(prepared.module) if stage == 3 else None
        return torn and f"ZeRO of stage 3 that gathers {torn} expert by expert"

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Gather what trains, or all where all does."""
        if self.config.stage < 3:
            return nullcontext()
        from deepspeed import zero

        gathered = [parameter for parameter in model.parameters() if parameter.requires_grad]
        context: AbstractContextManager[Any] = zero.GatheredParameters(gathered)
        return context
