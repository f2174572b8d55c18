"""What a prompt-learning adapter has learnt, in a checkpoint: PEFT writes only the prompt that comes of it.

Of a prompt that a network makes (P-tuning) the network would be lost, and a resumed stage would train another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

FILE = "prompt_encoder.safetensors"


def save_prompt(model: Any, folder: Path) -> None:
    """Write all that the active adapter's prompt is made of, where it is of that kind."""
    encoder = _encoder(model)
    if encoder is not None:
        state = {name: each.detach().cpu().contiguous() for name, each in encoder.state_dict().items()}
        save_file(state, folder / FILE, metadata={"format": "pt"})


class PromptRestorer(TrainerCallback):
    """Put it back once Trainer has loaded the checkpoint, in place: the optimiser knows these parameters already."""

    def __init__(self, model: Any, checkpoint: Path) -> None:
        self.model, self.checkpoint = model, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing is done where the adapter learns no prompt."""
        encoder = _encoder(self.model)
        if encoder is not None:
            encoder.load_state_dict(load_file(self.checkpoint / FILE))


def _encoder(model: Any) -> Any:
    settings = getattr(model, "active_peft_config", None)
    return model.prompt_encoder[model.active_adapter] if getattr(settings, "is_prompt_learning", False) else None
