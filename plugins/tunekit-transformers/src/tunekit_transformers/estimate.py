"""The loader's part of the estimate: parameters, weights, process and tokenizer, without reading a weight."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

from tunekit.errors import PlanError
from tunekit.values import BYTES, Estimate, EstimateRequest

from .conversion import converted_folder, is_complete, read_gguf
from .loading import auto_class, explain, explain_class, load_config, place_of, require_loadable
from .options import LoadOptions
from .quiet import quiet
from .sources import conversion_seconds, find_source
from .stored import stored_in, stored_problems


def extend(request: EstimateRequest, estimate: Estimate, options: LoadOptions) -> Estimate:
    """Set parameters, trainable, memory of weights and process, and the skeleton."""
    notes: list[str] = []
    config = _describe(request.load.model, options, notes.append)
    if unread := list(stored_problems(stored_in(config.to_dict()), request.plan)):
        raise PlanError(unread)
    skeleton = build_skeleton(config, request.load.precision.weights, options)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    dtype = request.load.precision.weights if _has_adapter(request) else request.load.precision.trainable
    memory = estimate.with_memory(process=_process_bytes(), weights=parameters * BYTES[dtype])
    return replace(
        estimate,
        parameters=parameters,
        trainable=parameters,
        memory=memory,
        notes=(*estimate.notes, *notes),
        skeleton=skeleton,
    )


def build_skeleton(config: Any, dtype: str, options: LoadOptions) -> Any:
    """Build the model on the meta device: every shape, no value."""
    import torch

    with quiet(), torch.device("meta"):
        try:
            return auto_class(options).from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=options.trust_remote_code
            )
        except ValueError as error:
            raise explain_class(config, options, error) or explain(config.name_or_path, "model", error) from error


def _describe(model: str, options: LoadOptions, note: Any) -> Any:
    """Return the config of the model, from its converted copy where there is one."""
    source = find_source(model)
    require_loadable(model, options)
    if source.kind != "gguf":
        return load_config(place_of(source, options), options)
    folder = converted_folder(source.location, options.cache_folder)
    if is_complete(folder):
        return load_config(str(folder), options)
    seconds = conversion_seconds(source.location.stat().st_size)
    note(f"{model} is not converted yet: the first run takes about {seconds} s for it, once")
    return read_gguf(source.location)[0]


def _has_adapter(request: EstimateRequest) -> bool:
    return any(hasattr(planned.plugin, "tunekit_attach_adapter") for planned in request.plan.plugins)


def _process_bytes() -> int:
    """What Python takes with the libraries of a run imported, measured in this process."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    with quiet():
        import transformers.trainer  # noqa: F401  imported for its size

        if importlib.util.find_spec("peft") is not None:
            import peft  # noqa: F401  imported for its size
    resident: int = psutil.Process().memory_info().rss
    return resident
