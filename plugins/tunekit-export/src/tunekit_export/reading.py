"""How an adapter is read with transformers and peft alone: code for its card, which the export itself runs.

So what the card says is what was compared. The base is made as the run had it: in the same dtype, quantised by the same
options, with the same positions, and with the rows of new tokens, which go with the adapter as no other base has them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.calls import Calls
from tunekit.errors import ExportError
from tunekit.exporting import shown_model
from tunekit.values import Context, ExportRequest, ModelBundle
from tunekit_train.encoding.pictures import image_reader
from tunekit_transformers.gguf_header import read_header
from tunekit_transformers.loading import load_config, locate
from tunekit_transformers.options import LoadOptions
from tunekit_transformers.quiet import quiet
from tunekit_transformers.sources import find_source
from tunekit_transformers.stored import stored_in

BELOW = "below"
"""The folder, inside that of an adapter, with the one that it stands on."""
ROWS = "new_rows.safetensors"
"""What the rows of new tokens begin as: their `ids`, `embedding` [ids dim], and `head` where it is another matrix."""
CONVERTED = "base"
"""What the code calls the folder of a base that comes as GGUF."""
ADDED = "tunekit_vocabulary"
"""Where the config of a model keeps the ids of tokens that it was given."""
BOOKKEEPING = frozenset(
    {ADDED, "_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version"}
)
"""What differs between configs of the same model."""
PLAIN = (str, int, float, bool, list)


@dataclass(frozen=True)
class Reading:
    """Code that leaves the trained model in `model`; FOLDER is that of the adapter.

    `model` is what the card calls the base, and `place` where it is on this machine. `first` makes a base that can be
    named out of one that cannot. `says` is what else a reader has to know.
    """

    model: str
    place: str
    auto: str
    imports: tuple[str, ...]
    first: str
    configure: tuple[str, ...]
    arguments: tuple[str, ...]
    steps: tuple[str, ...]
    says: str = ""

    def code(self, model: str | None = None) -> str:
        """The code, for the base as the card calls it or as given."""
        name = repr(self.model if model is None else model)
        names = ", ".join(sorted({self.auto, *self.imports}))
        arguments = "".join(f", {argument}" for argument in self.arguments)
        lines = ["from peft import PeftModel", f"from transformers import {names}", ""]
        lines += [self.first] if self.first and model is None else []
        lines += [line.replace("MODEL", name) for line in self.configure]
        lines += [f"base = {self.auto}.from_pretrained({name}{arguments})", *self.steps]
        return "\n".join([*lines, "model = PeftModel.from_pretrained(base, FOLDER)"])

    def run(self, folder: Path) -> Any:
        """Run it, as somebody would who has the base and the adapter's folder and no tunekit."""
        found: dict[str, Any] = {"FOLDER": str(folder)}
        try:
            with quiet():
                exec(compile(self.code(self.place), "README.md", "exec"), found)  # our own code
        except Exception as error:
            what = f"the adapter cannot be read with transformers and peft alone: {error}"
            raise ExportError(what, "export the model: `merged: {}`") from error
        return found["model"].eval()


def reading_of(bundle: ModelBundle, request: ExportRequest, context: Context) -> Reading:
    """How the adapter of a run is read; the files that takes are in the folder of the request already."""
    options = _options(context)
    place = locate(request.model, options, lambda message: None)
    plain, config = load_config(place, options).to_dict(), bundle.model.config
    changes = list(_changes("config", plain, config))
    quantized, says = _quantization(bundle, request, stored=stored_in(plain) is not None)
    hub = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    given = [f"{name}={value!r}" for name, value in hub.items() if value]
    configure = [f"config = AutoConfig.from_pretrained({', '.join(['MODEL', *given])})", *changes, ""]
    arguments = [
        f'dtype="{bundle.precision.weights}"',
        *given,
        *([f"quantization_config={quantized}"] if quantized else []),
    ]
    first, name = _named(request.model)
    return Reading(
        model=name,
        place=place,
        auto="AutoModelForCausalLM" if image_reader(bundle.tokenizer) is None else "AutoModelForImageTextToText",
        imports=(*(["AutoConfig"] if changes else []), *([re.split(r"[.(]", quantized)[0]] if quantized else [])),
        first=first,
        configure=tuple(configure) if changes else (),
        arguments=tuple([*arguments, "config=config"] if changes else arguments),
        steps=(*_rows(request.folder, bundle.model), *_below(request.folder)),
        says=says,
    )


def write_rows(bundle: ModelBundle, request: ExportRequest, context: Context) -> None:
    """Put the rows that the base has been given for new tokens beside the adapter, where it has been given any."""
    options = _options(context)
    config = load_config(locate(request.model, options, lambda message: None), options).get_text_config()
    trained = bundle.model.config
    ids = set((getattr(trained, ADDED, None) or {}).values())
    ids |= set(range(config.vocab_size, trained.get_text_config().vocab_size))
    if not ids:
        return
    import torch
    from safetensors.torch import save_file

    base, at = request.base().model, torch.tensor(sorted(ids))
    ends = {"embedding": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    if ends["head"] is None or ends["head"].weight is ends["embedding"].weight:
        del ends["head"]
    rows = {name: end.weight.detach()[at.to(end.weight.device)].cpu().contiguous() for name, end in ends.items()}
    save_file({"ids": at, **rows}, request.folder / ROWS, metadata={"format": "pt"})


def _options(context: Context) -> LoadOptions:
    """How the run's loader finds the model, as far as it says."""
    assert isinstance(context.calls, Calls)
    loader = context.calls.owner("tunekit_load_model")
    config = None if loader is None else loader.plugin.config
    names = ("revision", "trust_remote_code", "allow_pickle", "cache")
    return LoadOptions(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def _named(model: str) -> tuple[str, str]:
    """Code that makes the base of a GGUF file, with what the base is called then; nothing where it has a name."""
    source = find_source(model)
    if source.kind != "gguf":
        return "", shown_model(model)
    path = source.location
    place, imports = "Path()", ["from pathlib import Path"]
    if model.startswith("pkg:"):
        package = model.removeprefix("pkg:").partition("/")[0].replace("-", "_")
        place, imports = (
            f"find_spec({package!r}).submodule_search_locations[0]",
            ["from importlib.util import find_spec"],
        )
    lines = [
        *imports,
        "from transformers import GgufConfig",
        "",
        f"place = {place}  # where {path.name} lies",
        f"arguments = {{'gguf_file': {path.name!r}, 'dtype': {read_header(path).float_type or 'bfloat16'!r}}}",
        "base = AutoModelForCausalLM.from_pretrained(",
        "    place, quantization_config=GgufConfig(dequantize=True), **arguments",
        ")",
        f"base.save_pretrained({CONVERTED!r})",
        "",
    ]
    return "\n".join(lines), CONVERTED


def _changes(name: str, plain: Mapping[str, Any], config: Any) -> Iterator[str]:
    """A line for each part of a config that is another than the base's own."""
    for key, value in config.to_dict().items():
        inner = getattr(config, key, None)
        if key in BOOKKEEPING or key == "vocab_size" or value == plain.get(key):
            continue
        if hasattr(inner, "to_dict") and isinstance(plain.get(key), Mapping):
            yield from _changes(f"{name}.{key}", plain[key], inner)
        else:
            yield f"{name}.{key} = {value!r}"


def _quantization(bundle: ModelBundle, request: ExportRequest, stored: bool) -> tuple[str, str]:
    """The argument that stores the base as the run did, and what is to be said where there is none."""
    quantization = bundle.quantization
    if quantization is None:
        return "", ""
    if quantization.elsewhere:
        return quantization.elsewhere, ""
    asked = quantization.arguments.get("quantization_config")
    if str(bundle.source) == str(request.model) and asked is not None:
        return _written(asked), ""
    if stored:
        return "", ""
    return "", (
        f"It was trained on weights of the base that tunekit had rounded ({quantization.method}), which transformers "
        "does not do while it loads, and was compared on these. The code reads it on the base as it is: on other "
        "weights, by that rounding."
    )


def _written(config: Any) -> str:
    """A quantisation config of transformers as code: its class where its options are plain, else from a dict."""
    said = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    known = inspect.signature(type(config).__init__).parameters
    given = {name: value for name, value in said.items() if name in known and value != known[name].default}
    given = {name: value for name, value in given.items() if value is not None}
    if all(isinstance(value, PLAIN) for value in given.values()):
        return f"{type(config).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"
    described = json.loads(json.dumps({**said, "quant_method": said["quant_method"].value}))
    return f"{type(config).__name__}.from_dict({described!r})"


def _rows(folder: Path, model: Any) -> Iterator[str]:
    """Lines that give the base the rows of new tokens."""
    if not (folder / ROWS).is_file():
        return
    from safetensors import safe_open

    with safe_open(folder / ROWS, framework="pt") as file:
        parts = set(file.keys())
    yield from (
        "from safetensors.torch import load_file",
        "",
        f'new = load_file(f"{{FOLDER}}/{ROWS}")',
        f"base.resize_token_embeddings({model.config.get_text_config().vocab_size}, mean_resizing=False)",
        'base.get_input_embeddings().weight.data[new["ids"]] = new["embedding"].to(base.device)',
    )
    if "head" in parts:
        yield 'base.get_output_embeddings().weight.data[new["ids"]] = new["head"].to(base.device)'


def _below(folder: Path) -> list[str]:
    """Lines that add the adapters which this one stands on, the lowest first."""
    depth = 0
    while (folder / "/".join([BELOW] * (depth + 1))).is_dir():
        depth += 1
    places = ["/".join([BELOW] * number) for number in range(depth, 0, -1)]
    return [f'base = PeftModel.from_pretrained(base, f"{{FOLDER}}/{place}").merge_and_unload()' for place in places]
