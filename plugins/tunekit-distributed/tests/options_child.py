"""What each of two processes does to show the options of a way acting, and a way that is not what was asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tunekit.errors import TunekitError
from tunekit.values import Event, Launch
from tunekit_distributed import Ddp, Distributed, Fsdp, Zero
from tunekit_train import Batch, Provided, Sums, TrainConfig, train
from tunekit_train.parallel import Parallel
from tunekit_train.testing import VOCABULARY, CrossEntropy, bundle, context, family_model, random_items, tiny_llama

WAYS: dict[str, dict[str, Distributed[Any]]] = {
    "ddp": {"strict": Ddp(), "find_unused": Ddp(find_unused=True)},
    "fsdp2": {"plain": Fsdp(), "kept": Fsdp(reshard=False), "wrapped": Fsdp(wrap=("LlamaMLP",))},
    "zero3": {f"stage {stage}": Zero(stage=stage) for stage in (1, 2)}
    | {"stage 3": Zero(stage=3, keep_whole=0), "mixture": Zero(stage=3, keep_whole=0)},
}
MODELS: dict[str, Callable[[], Any]] = {"mixture": lambda: family_model("mixtral")}
OPTIONS = {"steps": 2, "batch": {"rows": 2, "accumulation": 2}, "checkpoint": {"every": 0}}


class Looking(CrossEntropy):
    """Looks at the model between forward and backward."""

    model: Any
    seen: dict[str, Any]

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """As the loss it is."""
        cut = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        self.seen["cut"] = sorted({type(module).__name__.removeprefix("FSDP") for module in cut})
        layers = [each for layer in self.model.model.layers for each in layer.mlp.parameters()]
        self.seen["in parts"] = all(isinstance(each, DTensor) for each in layers)
        self.seen["partitioned"] = all(hasattr(each, "ds_id") for each in self.model.parameters())
        return super().sums(batch, provided)


def optimizers() -> list[torch.optim.Optimizer]:
    """Those alive in this process."""
    return [each for each in gc.get_objects() if issubclass(type(each), torch.optim.Optimizer)]  # proxies may be dead


def held(event: Event, earlier: list[torch.optim.Optimizer]) -> Iterator[int]:
    """How many numbers this process holds of the states of optimisers, without those of earlier runs."""
    if event.kind == "step":
        for optimizer in [each for each in optimizers() if not any(each is other for other in earlier)]:
            for state in dict(optimizer.state).values():
                tensors = [each for each in state.values() if isinstance(each, torch.Tensor) and each.ndim]
                yield sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in tensors)


def look(folder: Path, parallel: Parallel, model: Any, unused: bool) -> dict[str, Any]:
    """Train for two steps; `unused`: a weight of the model takes part in none."""
    gc.freeze()  # as each scenario does
    seen: dict[str, Any] = {"states": 0, "losses": []}
    earlier = optimizers()
    if unused:
        model.model.layers[0].add_module("spare", torch.nn.Linear(2, 2))
    objective = Looking()
    objective.model, objective.seen = model, seen

    def hear(event: Event) -> None:
        seen["states"] = max(seen["states"], sum(held(event, earlier)))
        if event.kind == "step":
            seen["losses"].append(event.metrics["loss"])

    folder.mkdir(parents=True, exist_ok=True)
    surroundings = replace(context(folder), emit=hear, processes=parallel)
    chunks = "never" if parallel.obstacle("chunked_head") else "always"
    config = TrainConfig(**OPTIONS, compute={"chunked_head": chunks})
    try:
        with patch("tunekit_train.chunked.CHUNK_LOGITS", 3 * VOCABULARY):
            result = train(objective, random_items(16), bundle(model), config, surroundings)
    except RuntimeError as error:
        return {"error": str(error)}
    return {**seen, **{name: result.facts[name] for name in ("parallel", "steps", "chunked_head")}}


def mistaken(folder: Path, parallel: Parallel) -> str:
    """What is said where accelerate and DeepSpeed know nothing of this way, and prepare the model as they like."""

    def leave(*_: Any) -> dict[str, Any]:
        return {}

    def as_it_is(accelerator: Any) -> None:
        accelerator.prepare_model = lambda model, **_: model

    folder.mkdir(parents=True, exist_ok=True)
    surroundings = replace(context(folder), processes=parallel)
    asked = {"arguments": leave, "cut_": leave, "accelerate_": as_it_is if parallel.name == "ddp" else leave}
    try:
        with patch.multiple(parallel, **asked):
            train(CrossEntropy(), random_items(16), bundle(tiny_llama()), TrainConfig(**OPTIONS), surroundings)
    except TunekitError as error:
        return str(error)
    return "trained as something else"


def models_of(way: str) -> dict[str, Any]:
    """What is trained with each set of options.

    To be made before anything trains: what ZeRO-3 leaves behind has transformers make a new model in parts.
    """
    return {name: MODELS.get(name, tiny_llama)() for name in WAYS[way]}


def looks(way: str, folder: Path, launch: Launch, models: dict[str, Any]) -> dict[str, Any]:
    """What was seen with each set of options."""
    found: dict[str, Any] = {}
    for name, plugin in WAYS[way].items():
        parallel = plugin.group().join(launch, "cpu")
        found[name] = look(folder / name.replace(" ", "-"), parallel, models.pop(name), unused=way == "ddp")
        gc.collect()
    found["mistaken"] = mistaken(folder / "mistaken", parallel)
    return found
