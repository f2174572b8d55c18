"""Putting an adapter of any of PEFT's methods on a model: fresh, saved, and on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Context, Estimate, EstimateRequest, ModelBundle
from tunekit_lora.named import bare, peft_name
from tunekit_lora.wrapping import estimate_wrapped, open_saved, saved_settings, wrap, write

from .checks import NOTHING, saved_method
from .methods import Request
from .settings import make_settings
from .starting import refuse_other

PROMPT = "prompt_encoder.safetensors"
"""All that a prompt-learning method has learnt: PEFT keeps the prompt that comes of it, which cannot be trained on."""

HARMLESS = (
    "save_embedding_layers",
    "you cannot merge the BEFT adapter",
    "Failed to load the CUDA extension",
    "proceed at your own risk",  # of norms, whose class ln_tuning does not know, and which it only lets train
)


def attach(request: Request, bundle: ModelBundle, context: Context) -> Any:
    """Put a fresh adapter on the model: the same for the same seed, whatever drew random numbers before."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        settings = make_settings(request, bare(bundle.model))
        with heard(request):
            return wrap(bundle, settings)


def save(model: Any, folder: Path, request: Request) -> None:
    """Write the active adapter in PEFT's format, and what it leaves out."""
    write(model, folder)
    if request.entry.kind == "prompt":
        (name,) = model.active_adapters
        state = {key: each.detach().cpu().contiguous() for key, each in model.prompt_encoder[name].state_dict().items()}
        save_file(state, folder / PROMPT, metadata={"format": "pt"})


def reopen(request: Request, bundle: ModelBundle) -> Any:
    """Load a trained adapter with the very numbers that were saved: to answer with, or for a next stage to train on."""
    folder = Path(bundle.saved_adapter or "")
    if (saved := saved_method(folder)) != request.method:
        what = f"{folder} holds {saved or NOTHING}, and not {request.method}"
        raise TunekitError(what, "name an adapter of this method")
    if request.entry.kind != "prompt":
        with quiet():
            return open_saved(bundle)
    model = wrap(bundle, saved_settings(folder))
    if not (folder / PROMPT).is_file():
        raise TunekitError(f"{folder} holds no {PROMPT}", "name the folder of an adapter that a run has saved")
    model.prompt_encoder[peft_name(bundle.adapter_name)].load_state_dict(load_file(folder / PROMPT))
    return model.eval()


def estimate_adapter(request: Request, asked: EstimateRequest, estimate: Estimate) -> Estimate:
    """Wrap the skeleton on the meta device, as the adapter that it begins with, and add its parameters and bytes."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the adapter's"
    settings = make_settings(request, estimate.skeleton)
    if (begun := asked.started) is not None:
        refuse_other(request, settings, begun, estimate.skeleton)
        settings = saved_settings(begun.folder)
    with heard(request):
        counted = estimate_wrapped(settings, asked, estimate)
    for module in counted.skeleton.modules() if request.entry.evaluated else ():
        module.train = _stay.__get__(module.eval())
    return counted


def _stay(module: Any, mode: bool = True) -> Any:
    """Stay in evaluation mode: in training the method looks at numbers, and a skeleton has none."""
    return module


@contextmanager
def heard(request: Request) -> Iterator[None]:
    """Make a PlanError of what PEFT says of options that do not fit the model: an error, or that it has changed one.

    A warning would be read by nobody, and the run would train something else than what was asked for.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield
        except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError) as error:
            raise _misfit(request, str(error) or type(error).__name__) from error
    for warning in told:
        if issubclass(warning.category, UserWarning) and not _harmless(request, str(warning.message)):
            raise _misfit(request, str(warning.message))


def _misfit(request: Request, said: str) -> PlanError:
    what = f"{request.method} does not fit the model: {' '.join(said.split())[:400]}"
    return PlanError([Problem(f"use.{request.plugin}", what, "change its options or targets")])


def _harmless(request: Request, message: str) -> bool:
    """Warnings after which the very thing is trained that was asked for: some are about merging, saving, or speed."""
    one_factor = request.options.get("boft_n_butterfly_factor", 1) == 1
    return any(part in message for part in HARMLESS) or ("boft_n_butterfly_factor to 1" in message and one_factor)


@contextmanager
def quiet() -> Iterator[None]:
    """Loading says of some methods that it initialises what is then overwritten."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
