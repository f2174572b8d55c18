"""Load model and tokenizer with transformers' Auto classes, and refuse what would silently be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunekit.errors import ModelNotFoundError, PlanError, Problem, TunekitError
from tunekit.values import Event, LoadRequest, ModelBundle

from .conversion import convert, converted_folder, is_complete, read_gguf
from .options import LoadOptions
from .quiet import quiet
from .sources import ModelSource, find_source, problems, whole_in_hub_cache
from .stored import stored_in

Tell = Callable[[str], None]
LOADERS_OWN = frozenset({"dtype", "quantization_config", "attn_implementation"})
"""Arguments of `from_pretrained` that a config has as well, and that stay arguments beside one."""


def load(request: LoadRequest, options: LoadOptions, emit: Callable[[Event], None]) -> ModelBundle:
    """Load what the request names, on its device, in its `weights` dtype."""

    def tell(message: str) -> None:
        emit(Event(kind="started", stage="load", message=message))

    place = locate(request.model, options, tell)
    model = named_after_hub_(_load_model(place, request, options), request.model)
    return ModelBundle(model, request.tokenizer, request.model, request.precision, request.quantization)


def find_tokenizer(model: str, options: LoadOptions, tell: Tell) -> Any:
    """Load the tokenizer of a model; that of a GGUF file that is not converted yet is read from the file itself."""
    source = find_source(model)
    require_loadable(model, options)
    if source.kind != "gguf":
        return named_after_hub_(load_tokenizer(place_of(source, options), options, tell), model)
    folder = converted_folder(source.location, options.cache_folder)
    return load_tokenizer(str(folder), options, tell) if is_complete(folder) else read_gguf(source.location)[1]


def require_loadable(model: str, options: LoadOptions) -> None:
    """Raise what the plan would have told of a model that cannot be loaded."""
    found = problems(model, options)
    if found:
        raise ModelNotFoundError(str(found[0])) if found[0].where == "model" else PlanError(found)


def locate(model: str, options: LoadOptions, tell: Tell) -> str:
    """Return what transformers is to be given: a folder, or a hub id. Converts a GGUF file that is new."""
    source = find_source(model)
    require_loadable(model, options)
    if source.kind == "gguf":
        return str(convert(source.location, options.cache_folder, tell))
    return place_of(source, options)


def place_of(source: ModelSource, options: LoadOptions) -> str:
    """A folder, or a hub id where not all of it is here: what is here whole is loaded without asking the network."""
    if source.kind != "hub":
        return str(source.location)
    here = None if options.update else whole_in_hub_cache(source.name, options.revision)
    return source.name if here is None else str(here)


def named_after_hub_(loaded: Any, model: str) -> Any:
    """Call a model or tokenizer by its hub id, wherever its files lie: adapters name their base by it."""
    if find_source(model).kind == "hub":
        loaded.name_or_path = model
    return loaded


def load_tokenizer(place: str, options: LoadOptions, tell: Tell) -> Any:
    """Load the tokenizer; one without a padding token pads with its end token, and that is told."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **hub_arguments(options))
        except (OSError, ValueError) as error:
            raise explain(place, "tokenizer", error) from error
    return with_padding(tokenizer, place, tell)


def with_padding(tokenizer: Any, place: str, tell: Tell) -> Any:
    """The tokenizer, which pads with its end token where it has no other, and that is told."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            message = f"the tokenizer of {place} has neither a padding nor an end token"
            raise TunekitError(message, "set pad_token or eos_token in its tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
        tell(f"the tokenizer has no padding token; its end token {tokenizer.eos_token} pads")
    return tokenizer


def hub_arguments(options: LoadOptions) -> dict[str, Any]:
    """The arguments that config, tokenizer and model are all loaded with."""
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def load_config(place: str, options: LoadOptions) -> Any:
    """Read the config of a model."""
    from transformers import AutoConfig

    with quiet():
        try:
            return AutoConfig.from_pretrained(place, **hub_arguments(options))
        except (OSError, ValueError) as error:
            raise explain(place, "config", error) from error


def auto_class(options: LoadOptions) -> Any:
    """The class that makes models of the kind that is asked for."""
    import transformers

    return getattr(transformers, options.auto_class)


def _load_model(place: str, request: LoadRequest, options: LoadOptions) -> Any:
    arguments = _model_arguments(request, options)
    if request.configure:
        arguments = _configured(load_config(place, options), request, arguments)
    with quiet():
        try:
            model, info = auto_class(options).from_pretrained(place, output_loading_info=True, **arguments)
        except (OSError, ValueError) as error:
            raise explain_class(load_config(place, options), options, error) or explain(
                place, "model", error
            ) from error
    refuse_incomplete(place, info, options)
    _refuse_unread(model, request)
    if request.quantization is not None and request.quantization.after_load is not None:
        model = request.quantization.after_load(model)
    return model.eval()


def _model_arguments(request: LoadRequest, options: LoadOptions) -> dict[str, Any]:
    """Merge ours, the quantiser's and those of `tunekit_before_load`; later ones win, but never over an option."""
    import torch

    dtype = getattr(torch, request.precision.weights)
    arguments: dict[str, Any] = {"dtype": dtype, **hub_arguments(options)}
    arguments["use_safetensors"] = None if options.allow_pickle else True
    if options.device_map != "one":
        arguments["device_map"] = options.device_map
        arguments["max_memory"] = dict(options.max_memory) or None
    elif request.precision.device != "cpu":
        arguments["device_map"] = {"": request.precision.device}
    if request.quantization is not None:
        arguments.update(request.quantization.arguments)
    arguments.update(request.arguments)
    if options.attention != "auto":
        asked = arguments.setdefault("attn_implementation", options.attention)
        if asked != options.attention:
            raise TunekitError(
                f"use.transformers.attention is {options.attention}, but another plugin asks for {asked}",
                "leave one of the two out",
            )
    return arguments


def _configured(config: Any, request: LoadRequest, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the config as plugins have changed it: a model that is given one takes no overrides of it."""
    overrides = [name for name in request.arguments if name not in LOADERS_OWN and hasattr(config, name)]
    for name in overrides:
        setattr(config, name, request.arguments[name])
    for change in request.configure:
        change(config)
    return {"config": config, **{name: value for name, value in arguments.items() if name not in overrides}}


def _refuse_unread(model: Any, request: LoadRequest) -> None:
    """Stop at quantised weights that nobody asked for; the plan says so already where it knows the config."""
    if request.quantization is None and getattr(model.config, "quantization_config", None) is not None:
        stored = stored_in(model.config.to_dict())
        method = stored["quant_method"] if stored else "a method without a name"
        what = f"the weights of {request.model} are stored quantised by {method}, and no plugin was named to read them"
        raise TunekitError(what, "name the quantiser of that method in use, or a copy with plain weights")


def look_through(place: str, options: LoadOptions) -> None:
    """Compare the names and shapes of a checkpoint's weights with the model's, and read none of them.

    For who has another library load them. TunekitError for weights that would be random, or passed over.
    """
    config, nowhere = load_config(place, options), {"device_map": {"": "meta"}, "output_loading_info": True}
    safe = None if options.allow_pickle else True
    with quiet():
        try:
            _, info = auto_class(options).from_pretrained(
                place, config=config, use_safetensors=safe, **nowhere, **hub_arguments(options)
            )
        except (OSError, ValueError) as error:
            raise explain_class(config, options, error) or explain(place, "model", error) from error
    refuse_incomplete(place, info, options)


def refuse_incomplete(place: str, info: dict[str, Any], options: LoadOptions) -> None:
    """Stop at weights that the model has and the checkpoint has not, and at those that it is the other way round with.

    transformers has taken out of both what a model's class says does not matter.
    """
    if missing := sorted(info["missing_keys"]):
        what = f"the weights of {place} lack {_listed(missing)}, which would be random"
        raise TunekitError(what, "use a complete checkpoint of a causal language model")
    over = [name for name in sorted(info["unexpected_keys"]) if not _matches(name, options.leave_out)]
    if over:
        what = f"{place} holds {_listed(over)}, which the model has no place for: it would say something else without"
        remedy = "name a checkpoint of this architecture, or those weights in use.transformers.leave_out"
        raise TunekitError(what, f"{remedy} where the model can do without")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def explain_class(config: Any, options: LoadOptions, error: Exception) -> TunekitError | None:
    """The error for a model of the other kind: it reads images where text is asked for, or the other way round."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if "Unrecognized configuration class" not in str(error):
        return None
    place = config.name_or_path
    if options.auto_class != LoadOptions().auto_class:
        remedy = "take `vision` out of use, or name a model that does"
        return PlanError([Problem("model", f"{place} reads no images", remedy)])
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        remedy = "add `vision: {}` to use, which loads such models"
        return PlanError([Problem("model", f"{place} reads images besides text", remedy)])
    return None


def explain(place: str, what: str, error: Exception) -> TunekitError:
    """Turn what transformers raised into an error that says what to do."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return TunekitError(
            f"{place} brings its own Python code, which is not run unless asked",
            "read the code, then set use.transformers.trust_remote_code to true",
        )
    if "safetensors" in text and isinstance(error, OSError):
        return TunekitError(
            f"{place} has no safetensors weights",
            "use a safetensors copy, or set use.transformers.allow_pickle to true if you trust it",
        )
    if "Unrecognized configuration class" in text:
        return TunekitError(f"{place} is not a causal language model", "name a model that continues text")
    if not Path(place).exists() and isinstance(error, OSError):
        return _hub_error(place, what, text)
    return TunekitError(f"the {what} of {place} cannot be loaded: {text}")


def _hub_error(place: str, what: str, text: str) -> ModelNotFoundError:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return ModelNotFoundError(
        f"the {what} of {place} is neither a local folder nor to be had from the hub{offline}: {text[:300]}",
        "check the name and the network, or give a local folder or pkg:<package>",
    )
