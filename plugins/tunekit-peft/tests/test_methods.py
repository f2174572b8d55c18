"""Each method does on a tiny model what the README says of it, and the plan goes by the same.

The table in the README is written by running this file: `python plugins/tunekit-peft/tests/test_methods.py`.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tunekit.errors import TunekitError
from tunekit.testing import default_plugin, estimate_for, run_context, save_tiny_model, tiny_bundle, tiny_tokenizer
from tunekit.testing.observing import changed, logits, snapshot, trainable
from tunekit.testing.tiny import FP32
from tunekit.values import Item, LoadRequest, ModelBundle, TokenSequence
from tunekit_peft import METHODS, REFUSED, Peft
from tunekit_peft.methods import BOTH
from tunekit_train import Batch, TokenLogProbs
from tunekit_train.forward import Forward, choose_strategy, prepared, segments_obstacle
from tunekit_train.shapes import saved_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
TINY: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 4},
    "fourierft": {"n_frequency": 64},
    "gralora": {"r": 8, "gralora_k": 2},
    "hra": {"r": 4},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 16},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "psoft": {"r": 8},
    "pvera": {"r": 16},
    "randlora": {"r": 8},
    "tinylora": {"u": 8},
    "trainable_tokens": {"token_indices": list(range(3, 500))},
    "unilora": {"theta_d_length": 64},
    "vblora": {"num_vectors": 16, "vector_length": 32},
    "vera": {"r": 16},
}
"""Options that fit the tiny model, for methods whose defaults are made for large ones."""

LEARNING_RATE = 2e-2


@dataclass(frozen=True)
class Result:
    """What was seen of a method: `yes`, or what happens instead."""

    start: str
    padded: str
    packed: str
    saved: str
    merged: str
    named: str
    quantized: tuple[str, ...]

    def row(self, method: str) -> str:
        """Its line in the README."""
        entry = METHODS[method]
        cells = (
            f"`{method}`",
            entry.title,
            entry.paper,
            self.start,
            self.padded,
            self.packed,
            self.saved,
            self.merged,
            self.named,
        )
        return f"| {' | '.join((*cells, *self.quantized))} |"


def plugin_for(method: str) -> Peft:
    """The plugin with options that fit the tiny model."""
    return Peft(method=method, options=TINY.get(method, {}))


def attached(plugin: Peft, bundle: ModelBundle | None = None) -> ModelBundle:
    """The tiny model with the adapter on it."""
    context = run_context(plugin)
    found: ModelBundle = context.calls.own("tunekit_attach_adapter", bundle=bundle or tiny_bundle(), context=context)
    return found


def batch() -> Batch:
    """Sequences of several lengths, the second half of each supervised."""
    dice = torch.Generator().manual_seed(5)
    items = []
    for row, length in enumerate((7, 16, 11)):
        ids = torch.randint(3, 500, (length,), generator=dice).tolist()
        weights = [0.0] * (length // 2) + [1.0] * (length - length // 2)
        items.append(Item((TokenSequence(ids, weights, row, f"row {row}"),)))
    return Batch(tuple(items))


def loss_of(model: Any, padding: Any) -> torch.Tensor:
    """The mean loss of the batch, laid out by the engine."""
    strategy, need = choose_strategy(model, padding, 0, "a test"), TokenLogProbs()
    layout = strategy.lay_out(batch())
    with prepared(model, strategy, autocast=False):
        scores = need.provide(Forward(model, batch(), layout, (need,)))
    return -(scores.weights * scores.log_probs).sum() / scores.weights.sum()


def measure(method: str) -> Result:
    """Try everything that the table tells of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bundle = attached(plugin_for(method))
            start = _start(bundle.model)
            padded = _padded(bundle.model)
            return Result(
                start=start,
                padded=padded,
                packed=_packed(bundle.model),
                saved=_saved(method, bundle),
                merged=_merged(bundle.model),
                named=_named(method),
                quantized=tuple(_quantized(method, bits, start) for bits in BOTH),
            )


def _start(model: Any) -> str:
    """Whether a fresh one leaves the model as it was."""
    said, before = logits(model), logits(tiny_bundle().model)
    return "the model" if float((said[:, -before.shape[1] :] - before).abs().max()) < 1e-5 else "near it"


def _padded(model: Any) -> str:
    """A few steps on padded rows: the loss falls, all that trains moves, and nothing else does."""
    before, named = snapshot(model), set(trainable(model))
    losses = _train_(model)
    moved = changed(before, snapshot(model))
    if not losses[-1] < losses[0]:
        return "no: the loss does not fall"
    if moved - named:
        return f"no: {sorted(moved - named)[0]} moves"
    return "yes" if moved == named else f"no: {sorted(named - moved)[0]} never moves"


def _train_(model: Any, steps: int = 4) -> list[float]:
    """The loss before and after a few steps, without dropout and noise."""
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=LEARNING_RATE)
    losses = [loss_of(model.eval(), "always").item()]
    model.train()
    for _ in range(steps):
        loss_of(model, "always").backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, loss_of(model.eval(), "always").item()]


def _packed(model: Any) -> str:
    """End to end the loss and every gradient are those of padded rows."""
    if segments_obstacle(model) is not None:
        return "padded instead"
    found = []
    for padding in ("always", "never"):
        model.zero_grad(set_to_none=True)
        loss = loss_of(model.eval(), padding)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in trainable(model).items() if p.grad is not None}))
    model.zero_grad(set_to_none=True)
    (one, first), (other, second) = found
    apart = max(float((first[name] - second[name]).norm() / (first[name].norm() + 1e-9)) for name in first)
    return "yes" if abs(one - other) < 1e-5 and apart < 1e-3 and first.keys() == second.keys() else f"no: {apart:.1e}"


def _saved(method: str, bundle: ModelBundle) -> str:
    """Opened again it says the same, and can be trained on."""
    with tempfile.TemporaryDirectory() as folder:
        assert bundle.save is not None
        bundle.save(bundle.model, Path(folder) / "adapter")
        torch.randn(3)
        again = attached(plugin_for(method), tiny_bundle(saved_adapter=Path(folder) / "adapter")).model
    apart = float((logits(again) - logits(bundle.model)).abs().max())
    if apart > 1e-5:
        return f"no: differs by {apart:.1e}"
    return "yes" if trainable(again).keys() == trainable(bundle.model).keys() else "no: cannot be trained on"


def _merged(model: Any) -> str:
    """Added into the weights it says the same."""
    if not hasattr(model.base_model, "merge_and_unload"):
        return "no"
    try:
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError):
        return "no"
    apart = float((logits(merged) - logits(model)).abs().max())
    return "yes" if apart < 1e-4 else f"no: differs by {apart:.1e}"


def _named(method: str) -> str:
    """A second one starts as the base beside a first that has learnt; each comes back, and so does the base."""
    plugin, base = plugin_for(method), logits(tiny_bundle().model)
    try:
        first = attached(plugin, tiny_bundle(adapter_name="first"))
        _train_(first.model, 2)
        said = logits(first.model)
        if not hasattr(first.model.base_model, "disable_adapter_layers"):
            return "no"
        from tunekit_lora.named import LoraAdapters

        fresh = first.with_model(first.model, adapter_name="second", saved_adapter=None)
        second = attached(plugin, fresh).model
        switch = LoraAdapters().switch
        back = float((logits(switch(second, "first")) - said).abs().max())
        off = float((logits(switch(second, None)) - base).abs().max())
    except (TunekitError, ValueError, KeyError, AttributeError, RuntimeError):
        return "no"
    return "yes" if back == 0 == off else "no"


@functools.cache
def _tiny_on_disk() -> str:
    folder = Path(tempfile.mkdtemp()) / "tiny"
    return str(save_tiny_model(folder))


def _quantized(method: str, bits: int, start: str) -> str:
    """On bitsandbytes' weights of 4 or 8 bits it starts as on others, the loss falls, and the weights stay."""
    plugin, bnb, loader = plugin_for(method), bnb_of(bits), default_plugin("tunekit_load_model")
    if bnb is None:
        return "not run"
    if plugin.conflicts:
        return "refused"
    context = run_context(bnb, loader)
    request = LoadRequest(_tiny_on_disk(), FP32, tokenizer=tiny_tokenizer())
    quantization = context.calls.own("tunekit_quantize", request=request)
    bundle = context.calls.own(
        "tunekit_load_model", request=LoadRequest(_tiny_on_disk(), FP32, quantization, tokenizer=tiny_tokenizer()),
        context=context,
    )  # fmt: skip
    for _, report in context.calls.each("tunekit_patch", bundle=bundle):
        if bits == 8:  # the library's own products, as on a GPU: on a CPU the plugin has others
            report.undo()
    base, before = logits(bundle.model), snapshot(bundle.model)
    model = attached(plugin, bundle).model
    if start == "the model" and float((logits(model) - base).abs().max()) > 1e-4:
        return "no: it does not start as the quantised model"
    try:
        losses = _train_(model, 3)
    except RuntimeError as error:
        if "A view was created in no_grad mode" not in str(error):
            raise
        return "refused"  # c3a and gralora in 8 bits
    after = {name.replace("base_layer.", ""): each for name, each in snapshot(model.get_base_model()).items()}
    if changed(before, after):
        return "no: the weights move"
    return "yes" if losses[-1] < losses[0] else "no: the loss does not fall"


def bnb_of(bits: int) -> Any:
    """The quantiser, where it is installed."""
    try:
        from tunekit_bnb import Bnb
    except ImportError:
        return None
    return Bnb(bits=bits)


def table() -> str:
    """The table of all methods, measured now."""
    head = "| method | | paper | start | padded | packed | save | merge | named | 4-bit | 8-bit |"
    rows = [measure(method).row(method) for method in METHODS]
    refused = [f"| `{name}` | refused: {why} | | | | | | | | | |" for name, why in REFUSED.items()]
    return "\n".join((head, "|" + "---|" * 11, *rows, *refused))


def write() -> None:
    """Put the table into the README."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")


@pytest.mark.parametrize("method", METHODS)
def test_what_the_readme_says_of_a_method_is_what_happens(method: str) -> None:
    result, entry = measure(method), METHODS[method]
    assert result.row(method) in README.read_text().splitlines(), result
    assert (result.packed == "padded instead") == (entry.kind == "prompt")
    assert (result.named == "yes") == entry.named
    assert (result.merged == "yes") == entry.merges
    for bits, found in zip(BOTH, result.quantized, strict=True):
        assert found == "not run" or (found == "yes") == (bits in entry.quantized)
    assert (result.padded, result.saved) == ("yes", "yes")
    names = trainable(attached(plugin_for(method)).model)
    assert entry.modules == all(".default." in name for name in names)


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_counts_what_trains_and_the_memory_it_takes(method: str, tmp_path: Path) -> None:
    """Of shapes alone: some methods look at numbers while they compute, and cannot be planned.

    It counts the same where the adapter is saved and begun with.
    """
    estimate, bundle = estimate_for(plugin_for(method)), attached(plugin_for(method))
    trained = sum(each.numel() for each in trainable(bundle.model).values())
    assert estimate.trainable == trained
    assert saved_bytes(estimate.skeleton, FP32, 8) > 0
    assert bundle.save is not None
    bundle.save(bundle.model, tmp_path)
    for again in (plugin_for(method), Peft(method=method)):  # by the same options, and by none
        assert estimate_for(again, start=tmp_path).trainable == trained


def test_every_method_of_peft_is_there_or_is_refused_with_a_reason() -> None:
    installed = {kind.value.lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    assert installed == METHODS.keys() | REFUSED.keys()
    assert not METHODS.keys() & REFUSED.keys()


if __name__ == "__main__":
    write()
