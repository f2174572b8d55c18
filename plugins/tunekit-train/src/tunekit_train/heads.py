"""The value head: a number from a hidden state, trained with the model and saved beside its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import DEFAULT_ADAPTER

from .forward import base_model
from .objective import Source

if TYPE_CHECKING:
    from .job import Job

HeadStart = Literal["zeros", "normal"]
NAME = "value_head"
"""Where a model keeps its heads, by the name of the adapter that each belongs to, and how their parameters begin."""
FILE = "value_head.safetensors"
STATE = "value_head.json"


class ValueHead(nn.Module):
    """One number from each hidden state: hidden [..., hidden size] -> fp32 [...], computed in fp32 always.

    It starts at `zeros`, or `normal` with variance 1 / (hidden size + 1), as in Learning to summarize from human
    feedback, arXiv:2009.01325.
    """

    def __init__(self, size: int, start: HeadStart = "zeros", seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size))
        self.offset = nn.Parameter(torch.zeros(1))  # PEFT takes what is named bias for a part of some adapters
        if start == "normal":
            dice = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.weight, std=(size + 1) ** -0.5, generator=dice)

    def forward(self, hidden: Tensor) -> Tensor:
        """Value each hidden state."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight, self.offset)[..., 0]

    def save(self, folder: Path) -> None:
        """Write weights and shape into a folder."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        described = json.dumps({"hidden_size": self.weight.shape[1], "outputs": 1, "dtype": "float32"})
        save_file(tensors, folder / FILE, metadata={"format": "pt", "config": described})

    @classmethod
    def load(cls, folder: Path) -> ValueHead:
        """Read the head that was saved in a folder. Raises TunekitError where there is none."""
        if not (folder / FILE).is_file():
            raise TunekitError(f"{folder} holds no value head", "name the folder of a stage that trained one")
        with safe_open(folder / FILE, framework="pt") as file:
            size = json.loads(file.metadata()["config"])["hidden_size"]
            head = cls(size)
            head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
        return head


class TrainedHead(Source):
    """The head of the model that a stage trains."""

    def __init__(self, head: ValueHead, came_from: str) -> None:
        self.head, self.came_from = head, came_from

    @classmethod
    def prepare(cls, job: Job, checkpoint: Path | None, start: HeadStart, frozen: bool) -> TrainedHead:
        """Give the model a head: the one it has, that of a checkpoint or of an earlier stage, or a fresh one."""
        model, bundle = job.bundle.model, job.bundle
        if (why := job.parallel.obstacle("value_head")) is not None:
            raise PlanError([Problem(job.context.key, f"trains a value head, and {why}", "use `ddp`, or one process")])
        head, came_from = head_of(model) or saved_head(bundle.saved_adapter, bundle.source), "an earlier stage"
        if checkpoint is not None:
            head, came_from = ValueHead.load(checkpoint), json.loads((checkpoint / STATE).read_text())["came_from"]
        if head is None:
            head = ValueHead(base_model(model).config.get_text_config().hidden_size, start, job.context.seed)
            came_from = f"fresh, {start}"
        attach_(model, head.requires_grad_(not frozen))
        return cls(head, came_from)

    def facts(self) -> Mapping[str, Any]:
        """Where the head came from."""
        return {"value_head": self.came_from}

    def save(self, folder: Path) -> None:
        """Write the head, and where it came from when the stage began."""
        self.head.save(folder)
        (folder / STATE).write_text(json.dumps({"came_from": self.came_from}))

    def close(self) -> None:
        """Let no later stage train it unasked."""
        self.head.requires_grad_(False)


def attach_(model: Any, head: ValueHead) -> None:
    """Make a head part of a model, in place of the one that its active adapter may have."""
    if NAME not in dict(model.named_children()):
        model.add_module(NAME, nn.ModuleDict())
    model.get_submodule(NAME)[_owner(model)] = head.to(next(model.parameters()).device)


def head_of(model: Any) -> ValueHead | None:
    """The head of a model, if it has one: that of its active adapter."""
    heads: Any = dict(model.named_children()).get(NAME, {})
    return next((head for owner, head in heads.items() if owner == _owner(model)), None)


def is_head(parameter: str) -> bool:
    """Whether a parameter of this name is a head's."""
    return parameter.startswith(f"{NAME}.")


def _owner(model: Any) -> str:
    """The adapter that is active, as PEFT calls it; a model without one has one head."""
    active = getattr(model, "active_adapters", None)
    return active[0] if isinstance(active, list) and active else DEFAULT_ADAPTER


def saved_head(*places: str | Path | None) -> ValueHead | None:
    """The head in the first of these folders that holds one."""
    for place in places:
        if place is not None and (Path(place) / FILE).is_file():
            return ValueHead.load(Path(place))
    return None


@contextmanager
def without_head(model: Any) -> Iterator[None]:
    """Take the heads out while the model is saved: its format knows no such thing, a head has a file of its own."""
    heads = dict(model.named_children()).get(NAME)
    if heads is None:
        yield
        return
    delattr(model, NAME)
    try:
        yield
    finally:
        model.add_module(NAME, heads)
