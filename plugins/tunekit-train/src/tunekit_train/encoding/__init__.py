"""Examples become token ids with a loss weight on each, by rendering the model's own chat template."""

from .encoder import BATCH, Encoder
from .rules import Rules, Supervise, Thinking, TooLong

__all__ = ["BATCH", "Encoder", "Rules", "Supervise", "Thinking", "TooLong"]
