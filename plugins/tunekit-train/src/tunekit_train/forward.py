"""How the model is run on a batch: which strategy, why, and the forward that needs are provided from."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tunekit.errors import PlanError, Problem

from .config import Padding
from .cross_entropy import token_log_probs_
from .layout import Layout, laid_tokens, lay_end_to_end, lay_padded, lay_shared
from .objective import Batch, Need, Source
from .shares import Shares

if TYPE_CHECKING:
    from .chunked import Reduction
    from .frozen_layers import FrozenLayers

StrategyName = Literal["segments", "padded"]


@dataclass(frozen=True)
class Strategy:
    """How batches are laid out and run, and why that way.

    `share_prompts` says whether sequences of one item run the prompt that they share once, `sharing_reason` why.
    """

    name: StrategyName
    reason: str
    padding_id: int = 0
    share_prompts: bool = False
    sharing_reason: str = ""

    def lay_out(self, batch: Batch) -> Layout:
        """Turn a batch into tensors."""
        if self.name == "padded":
            return lay_padded(batch.sequences, self.padding_id)
        return lay_shared(batch.items) if self.share_prompts else lay_end_to_end(batch.sequences)

    def places(self, batch: Batch) -> int:
        """Tokens that one run of the batch computes, padding included."""
        if self.name == "padded":
            return len(batch.sequences) * max(len(sequence) for sequence in batch.sequences)
        return laid_tokens(batch.items, self.share_prompts)


def choose_strategy(model: Any, padding: Padding, padding_id: int, key: str, share_prompts: bool = True) -> Strategy:
    """Choose the cheapest exact strategy for this model.

    Raises:
        PlanError: `padding` is `never` and the model cannot do without.
    """
    if padding == "always":
        return _padded("batch.padding is always", padding_id)
    obstacle = segments_obstacle(model)
    if obstacle is None:
        from .attentions import attention_of

        reason = f"{base_model(model).config.model_type} attends inside each sequence exactly"
        apart = attention_of(base_model(model)).traits.sharing if share_prompts else "batch.share_prompts is false"
        sharing = "a prompt is computed once for all sequences of an item, and attended to by each exactly"
        return Strategy("segments", reason, padding_id, apart is None, apart or sharing)
    if padding == "never":
        where = f"{key}.batch.padding"
        raise PlanError([Problem(where, f"padding is never, but {obstacle}", "use padding: auto or always")])
    return _padded(obstacle, padding_id)


def _padded(reason: str, padding_id: int) -> Strategy:
    return Strategy("padded", reason, padding_id, sharing_reason="a padded row holds one sequence")


def segments_obstacle(model: Any) -> str | None:
    """Say why sequences of this model cannot be laid end to end, or None where they can."""
    from .segments import FAMILIES, WINDOW_UNTOLD

    base = base_model(model)
    if base.config.model_type not in FAMILIES or not type(base).__module__.startswith("transformers."):
        return f"{base.config.model_type} is not among the models verified without padding"
    if base.config.model_type in WINDOW_UNTOLD and "sliding_attention" in base.config.layer_types:
        return f"{base.config.model_type} does not tell its attention of its sliding window"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "a prompt-learning adapter puts its own tokens in front of each row"
    if not base._can_set_attn_implementation():
        return f"{type(base).__name__} does not let its attention be switched"
    return _replaced_forward(base)


def _replaced_forward(base: Any) -> str | None:
    """Say that a library has put a forward of its own into a class of transformers: nobody knows if it sees borders."""
    for kind in {type(module) for module in base.modules()}:
        ours, found = kind.__module__, getattr(kind.forward, "__module__", None) or kind.__module__
        if ours.startswith("transformers.") and not found.startswith(("transformers.", "torch.")):
            return f"the forward of {kind.__name__} was replaced by {found.partition('.')[0]}"
    return None


def prompt_tokens(model: Any) -> int:
    """How many hidden states a prompt-learning adapter puts in front of each row; 0 where it is of another kind.

    Of a prefix only keys and values are learnt, and no hidden state belongs to them.
    """
    adapted = model.module if hasattr(model, "module") else model
    settings = getattr(adapted, "active_peft_config", None)
    if settings is None or not settings.is_prompt_learning or settings.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        return 0
    return int(settings.num_virtual_tokens)


def base_model(model: Any) -> Any:
    """The transformers model inside an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def prepared(model: Any, strategy: Strategy, autocast: bool) -> Iterator[None]:
    """Make this model instance ready for the strategy, and put everything back afterwards."""
    base = base_model(model)
    with ExitStack() as stack:
        for config in {id(each): each for each in (base.config, base.config.get_text_config())}.values():
            if hasattr(config, "use_cache"):
                stack.callback(setattr, config, "use_cache", config.use_cache)
        if strategy.name == "segments":
            from .attentions import attention_of
            from .segments import switched

            stack.enter_context(switched(base, attention_of(base).name))
        if autocast and model is not base:
            # Autocast casts the adapter's fp32 weights down; without this every input is first cast up to them.
            stack.enter_context(_inputs_as_they_are(model))
        yield


@contextmanager
def _inputs_as_they_are(model: Any) -> Iterator[None]:
    """Have no adapter layer cast its inputs: PEFT's own switch fails for those of single rows, which cast nothing."""
    casting = [module for module in model.modules() if getattr(module, "cast_input_dtype_enabled", False)]
    for module in casting:
        module.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for module in casting:
            module.cast_input_dtype_enabled = True


class Forward:
    """One batch and the model to run it through. Needs ask it for what they are made of.

    `needs` are all that will ask. What they say beforehand (`Need.logits_at`, `Need.hidden_at`) comes from one run of
    the model, made when the first of it is asked for; whatever else is asked for is a run of its own. `sources` are
    what the needs have prepared before the first step, `frozen` the layers that need not be computed again. `chunked`:
    log-probabilities are made without all logits at once.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        layout: Layout,
        needs: Iterable[Need[Any]] = (),
        sources: Mapping[Need[Any], Source] | None = None,
        frozen: FrozenLayers | None = None,
        chunked: bool = False,
    ) -> None:
        self.model, self.batch, self.layout = model, batch, layout
        self._frozen, self.chunked = frozen, chunked
        self._sources = dict(sources or {})
        needs = tuple(needs)
        self._asked = {name: value for need in needs for name, value in need.asks().items()}
        self._outputs: dict[str, Any] | None = None
        apart = [need for need in needs if chunked and need.chunks]
        self._logits = Shares(need.logits_at(layout) for need in needs if need not in apart)
        self._hidden = Shares(
            [*(need.hidden_at(layout) for need in needs), *(need.logits_at(layout) for need in apart)]
        )

    def source(self, need: Need[Any]) -> Source:
        """What this need has prepared before the first step."""
        return self._sources[need]

    def logits(self, positions: Tensor) -> Tensor:
        """The logits at these positions, [positions, vocab], which the caller owns and may write over.

        `positions` are flat in batch x seq, those of a padded batch ascending.
        """
        if not self._logits.hold(positions):
            if not self._logits.expect(positions):
                return self._run(positions, None)[0]
            self._run_shared()
        return self._logits.take(positions)

    def log_probs(self, positions: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """log p(target) under softmax(logits / temperature) at these positions, fp32 [positions].

        Without all their logits at once, where the head is chunked.
        """
        if not self.chunked:
            return token_log_probs_(_cooled(self.logits(positions), temperature), targets)
        from .chunked import chunked_log_probs, head_of_model

        base, hidden = _inner(self.model), self.hidden(positions)
        head, logits = base.get_output_embeddings(), head_of_model(base)
        trains = any(parameter.requires_grad for parameter in head.parameters())
        return chunked_log_probs(
            hidden, targets, lambda part: _cooled(logits(part), temperature), head.weight.shape[0], trains
        )

    def reduced(self, reduce: Reduction, positions: Tensor, *along: Tensor) -> tuple[Tensor, ...]:
        """`reduce(logits, *along)` for the logits [positions, vocab] at these positions and tensors [positions, ...].

        Each row of the tensors [positions, ...] that `reduce` returns comes from its own position alone, so that it can
        be asked for some positions at a time where the head is chunked. It may write over the logits.
        """
        if not self.chunked:
            return reduce(self.logits(positions), *along)
        from .chunked import chunked, head_of_model

        base, hidden = _inner(self.model), self.hidden(positions)
        vocabulary = base.get_output_embeddings().weight.shape[0]
        return tuple(chunked(hidden, along, head_of_model(base), vocabulary, reduce))

    def hidden(self, positions: Tensor) -> Tensor:
        """What the output head is given at these positions, [positions, hidden size], in the model's dtype."""
        if not self._hidden.hold(positions):
            if not self._hidden.expect(positions):
                return self._run(positions[:0], positions)[1]
            self._run_shared()
        return self._hidden.take(positions)

    def output(self, name: str) -> Any:
        """What the run for all needs has returned under this name besides logits: for a need that `asks`."""
        assert self._asked, "a need says in asks() what it wants of the run"
        if self._outputs is None:
            self._run_shared()
        assert self._outputs is not None
        return self._outputs[name]

    def _run_shared(self) -> None:
        """Run the model once for all that was announced."""
        logits_at, hidden_at = self._logits.positions, self._hidden.positions
        nowhere = self.layout.positions[:0]
        logits, hidden = self._run(nowhere if logits_at is None else logits_at, hidden_at, self._asked)
        self._logits.fill(logits)
        self._hidden.fill(hidden)

    def _run(
        self, logits_at: Tensor, hidden_at: Tensor | None, asked: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model with its head at `logits_at` only; returns logits and hidden states, the latter maybe empty."""
        arguments = self._arguments()
        logits_at = self._behind_prompts(logits_at)
        if hidden_at is not None:
            with self._surroundings(), _head_given(self.model, logits_at, self._behind_prompts(hidden_at)) as taken:
                logits = self._call(arguments, asked)
            return logits.reshape(-1, logits.shape[-1]), taken[0]
        whole = "logits_to_keep" not in inspect.signature(_inner(self.model).forward).parameters
        if not whole:
            arguments["logits_to_keep"] = logits_at if self.layout.attention_mask is None else self._mask(logits_at)
        with self._surroundings():
            logits = self._call(arguments, asked)
        logits = logits.reshape(-1, logits.shape[-1])
        return (logits[logits_at] if whole else logits), logits[:0]

    def _behind_prompts(self, positions: Tensor) -> Tensor:
        """Where these positions are once a prompt-learning adapter has put its own tokens in front of each row."""
        added, length = prompt_tokens(self.model), self.layout.input_ids.shape[1]
        return positions + added * (positions.div(length, rounding_mode="floor") + 1) if added else positions

    def _call(self, arguments: Mapping[str, Any], asked: Mapping[str, Any] | None) -> Tensor:
        """Call the model; what it returns besides logits is kept where something was asked of it."""
        out = self.model(**arguments, **(asked or {}), use_cache=False)
        if asked:
            self._outputs = {name: value for name, value in out.items() if name != "logits"}
        logits: Tensor = out.logits
        return logits

    def _arguments(self) -> dict[str, Any]:
        layout = self.layout
        if layout.attention_mask is not None:
            return {"input_ids": layout.input_ids, "attention_mask": layout.attention_mask, **layout.inputs}
        from .attentions import attention_of

        device = layout.input_ids.device if attention_of(_inner(self.model)).traits.on_device else torch.device("cpu")
        return {
            "input_ids": layout.input_ids,
            "position_ids": layout.position_ids,
            "cu_seq_lens_q": _cumulative(layout.lengths).to(device),
            "cu_seq_lens_k": _cumulative(layout.key_lengths).to(device),
            "max_length_q": max(layout.lengths),
            "max_length_k": max(layout.key_lengths),
        }

    def _mask(self, positions: Tensor) -> Tensor:
        rows, length = self.layout.input_ids.shape
        shape = (rows, length + prompt_tokens(self.model))
        mask = torch.zeros(shape, dtype=torch.bool, device=positions.device)  # [batch, seq]
        mask.view(-1)[positions] = True
        return mask

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What is to be known while the model runs: where segments end, and what frozen layers have said."""
        from .segments import borders_given

        below: AbstractContextManager[None] = nullcontext()
        if self._frozen is not None:
            below = self._frozen.given(self.batch, self.layout)
        with nullcontext() if self.layout.attention_mask is not None else borders_given(), below:
            yield


@contextmanager
def _head_given(model: Any, logits_at: Tensor, hidden_at: Tensor) -> Iterator[list[Tensor]]:
    """Take the hidden states at `hidden_at` on their way into the output head, and let through those at `logits_at`."""
    head = _inner(model).get_output_embeddings()
    if head is None:
        raise RuntimeError(f"{type(_inner(model)).__name__} has no output head to take hidden states from")
    taken: list[Tensor] = []

    def narrow(module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        flat = given[0].reshape(-1, given[0].shape[-1])  # [batch x seq, hidden size]
        taken.append(flat[hidden_at])
        return (flat[logits_at][None], *given[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield taken
    finally:
        handle.remove()


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _cumulative(lengths: tuple[int, ...]) -> Tensor:
    """Where segments begin and end, [segments + 1].

    On the CPU, unless a kernel reads them: the segments are a loop on the host, which must not wait for the device.
    """
    return torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _inner(model: Any) -> Any:
    """The transformers model inside a distributed wrapper and an adapter."""
    return base_model(model.module if hasattr(model, "module") else model)
