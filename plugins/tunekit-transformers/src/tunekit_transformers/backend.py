"""Answering with transformers' `generate`: batches, streams and log-likelihoods."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from tunekit.errors import TunekitError
from tunekit.values import Answer, GenerationSettings, ModelBundle, Prompt, TextScore

from .answering import Follow, Row
from .loading import load_tokenizer
from .options import LoadOptions
from .prompts import context_length, encode_prompt, end_tokens, special_stops
from .quiet import quiet
from .sampling import Choose
from .scoring import score_texts

if TYPE_CHECKING:
    from torch import Tensor


def open_backend(bundle: ModelBundle, options: LoadOptions, batch: int) -> TransformersBackend:
    """Make a backend; a tokenizer saved with the adapter is used, and with it the chat template it was trained on."""
    return TransformersBackend(with_saved_tokenizer(bundle, options), batch)


def with_saved_tokenizer(bundle: ModelBundle, options: LoadOptions) -> ModelBundle:
    """The bundle with the tokenizer that was saved with its adapter, where there is one."""
    folder = bundle.saved_adapter
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return bundle
    own = replace(options, revision=None)
    return replace(bundle, tokenizer=load_tokenizer(str(folder), own, lambda message: None))


class TransformersBackend:
    """Implements `tunekit.values.Backend`.

    Greedy answers of a batch equal those asked one by one up to the rounding of the compute dtype: products of another
    shape may add in another order, and where two tokens are all but equally likely that decides. In float32 this is
    rare, in bf16 it is seen now and then.
    """

    def __init__(self, bundle: ModelBundle, batch: int = 32) -> None:
        self.bundle, self.batch = bundle, batch
        self.model, self.tokenizer = bundle.model, bundle.tokenizer

    def generate(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[Answer]:
        """Answer all prompts, those of similar length together; answers come in the order of the prompts."""
        encoded = [self.encode(prompt) for prompt in prompts]
        rows = [self._row(ids, settings) for ids in encoded]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            asked, grown = [prompts[index] for index in chosen], [rows[index] for index in chosen]
            self._run(asked, [encoded[index] for index in chosen], grown, chosen, settings)
        return [row.answer() for row in rows]

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[str]:
        """Answer piece by piece, without ever splitting a character or showing the beginning of a stop string."""
        ids = self.encode(prompt)
        row = self._row(ids, settings)
        return _stream(row, lambda watch: self._run([prompt], [ids], [row], [0], settings, watch))

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, at least one."""
        return encode_prompt(prompt, self.bundle)

    def inputs(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Any]:
        """What the model is given besides the tokens of these prompts, `ids` [batch seq]: nothing, for text."""
        return {}

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Log-likelihood of each text in nats, summed in float64."""
        with self._answering():
            return score_texts(self.bundle, texts, self.batch)

    def _row(self, ids: Sequence[int], settings: GenerationSettings) -> Row:
        context = context_length(self.model)
        room = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - len(ids))
        if settings.max_new_tokens > 0 and room <= 0:
            message = f"a prompt has {len(ids)} tokens, and {self.bundle.source} reads {context} with the answer"
            raise TunekitError(message, "shorten the prompt")
        stops = special_stops(self.tokenizer, settings.stop)
        return Row(self.tokenizer, room, settings.stop, end_tokens(self.bundle), stops)

    def _run(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[Sequence[int]],
        rows: Sequence[Row],
        numbers: list[int],
        settings: GenerationSettings,
        watch: Callable[[], bool] | None = None,
    ) -> None:
        """Grow the rows of one batch until each has ended. `numbers` are the rows' places in the whole call."""
        if max(row.limit for row in rows) <= 0:
            return
        ids, real = _pad_left(encoded, self.tokenizer.pad_token_id, _device(self.model))
        config = self._generation_config(max(row.limit for row in rows))
        with self._answering(), quiet():
            self.model.generate(
                input_ids=ids,
                attention_mask=real.long(),
                **self.inputs(prompts, ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([Choose(settings, numbers, real)]),
                stopping_criteria=StoppingCriteriaList([Follow(rows, watch)]),
            )

    def _generation_config(self, limit: int) -> Any:
        """Name every setting that `generate` would otherwise take from the model's own sampling defaults."""
        make: Any = GenerationConfig
        return make(
            max_new_tokens=limit,
            max_length=None,
            min_length=0,
            min_new_tokens=0,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(end_tokens(self.bundle)) or None,
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Evaluation mode, no gradients, products in the compute dtype; training mode comes back afterwards."""
        precision, training = self.bundle.precision, self.model.training
        dtype = getattr(torch, precision.compute)
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast(_device(self.model).type, dtype, enabled=precision.autocast):
                yield
        finally:
            if training:
                self.model.train()


def _stream(row: Row, run: Callable[[Callable[[], bool]], None]) -> Iterator[str]:
    """Run `run` in a thread and yield what has settled of `row`; leaving the iterator early stops the thread."""
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()
    given_up = threading.Event()
    shown = ""

    def watch() -> bool:
        nonlocal shown
        settled = row.settled
        if settled.startswith(shown) and len(settled) > len(shown):
            pieces.put(settled[len(shown) :])
            shown = settled
        return given_up.is_set()

    def work() -> None:
        try:
            run(watch)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=work, name="tunekit-stream", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        given_up.set()
        thread.join()


def _pad_left(encoded: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids, int64 (batch, seq), and which of them are no padding, bool (batch, seq)."""
    longest = max(len(ids) for ids in encoded)
    padded = [[pad] * (longest - len(ids)) + list(ids) for ids in encoded]
    real = [[False] * (longest - len(ids)) + [True] * len(ids) for ids in encoded]
    return torch.tensor(padded, device=device), torch.tensor(real, device=device)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
