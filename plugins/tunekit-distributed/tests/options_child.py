"""What each of two processes does to show the options of a way acting: `python options_child.py WAY FOLDER`."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tunekit.values import Event, Launch
from tunekit_distributed import Ddp, Distributed, Fsdp, Zero
from tunekit_train import Batch, Provided, Sums, TrainConfig, train
from tunekit_train.parallel import Parallel
from tunekit_train.testing import CrossEntropy, bundle, context, family_model, random_items, tiny_llama

WAYS: dict[str, dict[str, Distributed[Any]]] = {
    "ddp": {"strict": Ddp(), "find_unused": Ddp(find_unused=True)},
    "fsdp": {"plain": Fsdp(), "kept": Fsdp(reshard=False), "wrapped": Fsdp(wrap=("LlamaMLP",))},
    "zero": {f"stage {stage}": Zero(stage=stage) for stage in (1, 2)}
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
    return [each for each in gc.get_objects() if isinstance(each, torch.optim.Optimizer)]


def held(event: Event, earlier: list[torch.optim.Optimizer]) -> Iterator[int]:
    """How many numbers this process holds of the states of optimisers, without those of earlier runs."""
    if event.kind == "step":
        for optimizer in [each for each in optimizers() if not any(each is other for other in earlier)]:
            for state in dict(optimizer.state).values():
                tensors = [each for each in state.values() if isinstance(each, torch.Tensor) and each.ndim]
                yield sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in tensors)


def look(folder: Path, parallel: Parallel, model: Any, unused: bool) -> dict[str, Any]:
    """Train for two steps; `unused`: a weight of the model takes part in none."""
    seen: dict[str, Any] = {"states": 0, "losses": []}
    earlier = optimizers()
    if unused:
        model.model.layers[0].add_module("spare", torch.nn.Linear(2, 2))
    objective = Looking()
    objective.model, objective.seen = model, seen

    def hear(event: Event) -> None:
        if event.kind == "step":
            seen["losses"].append(event.metrics["loss"])
        seen["states"] = max(seen["states"], sum(held(event, earlier)))

    folder.mkdir(parents=True, exist_ok=True)
    surroundings = replace(context(folder), emit=hear, processes=parallel)
    try:
        result = train(objective, random_items(16), bundle(model), TrainConfig(**OPTIONS), surroundings)
    except RuntimeError as error:
        return {"error": str(error)}
    return {**seen, "parallel": result.facts["parallel"], "steps": result.facts["steps"]}


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    launch = Launch(folder, (), lambda: None, lambda: None, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    # Before the first of them trains: what ZeRO-3 leaves behind has transformers make a new model in parts.
    models = {name: MODELS.get(name, tiny_llama)() for name in WAYS[way]}
    found, first = {}, None
    for name, plugin in WAYS[way].items():
        parallel = plugin.group().join(launch, "cpu")
        first = first or parallel
        found[name] = look(folder / name.replace(" ", "-"), parallel, models.pop(name), unused=way == "ddp")
        gc.collect()
    if first.first:
        (folder / "found.json").write_text(json.dumps(found))
    first.wait()
    first.close()


if __name__ == "__main__":
    main()
