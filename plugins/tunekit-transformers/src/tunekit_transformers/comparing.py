"""Compare an export, read again, with what was trained and with the base: every target measures with this.

KL(p || q) = sum_t p(t) (log p(t) - log q(t)) over the vocabulary, in nats, a mean over predicted tokens; p is the
trained model. Elements in float32, sums in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunekit.errors import ExportError
from tunekit.values import ExportRequest, ModelBundle, Precision, TokenSequence, Verification

if TYPE_CHECKING:
    from torch import Tensor


def verify(bundle: ModelBundle, request: ExportRequest, read: Callable[[], Any], reader: str) -> Verification:
    """Compare what `read` gives of the files with the trained model of `bundle`, on the rows of the request.

    `read` returns a model with the calling convention of transformers, in the dtype it computes in. It is called once
    the base is gone again, so that two models at most are in memory. `reader` says in a few words what has read it.
    """
    trained = _Side(bundle.model, bundle.precision)
    base = request.base()
    against_base = _compare(trained, _Side(base.model, base.precision), request, "the base")
    del base
    against_export = _compare(trained, _Side(read(), None), request, reader)
    return Verification(
        reader=reader,
        rows=len(request.rows),
        tokens=against_export.tokens,
        held_out=request.held_out,
        kl=_divergence(against_export),
        base_kl=_divergence(against_base),
        top1=against_export.same / against_export.tokens,
        perplexity=_perplexity(against_export.other_loss, against_export.tokens),
        trained_perplexity=_perplexity(against_export.trained_loss, against_export.tokens),
        base_perplexity=_perplexity(against_base.other_loss, against_base.tokens),
    )


@dataclass(frozen=True)
class _Side:
    """A model and the policy it computes by; None: as it is stored."""

    model: Any
    precision: Precision | None

    def log_probs(self, row: TokenSequence) -> Tensor:
        """float32[predicted vocab], of every token of the row but the first."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([list(row.ids)], device=device)
        further = {} if row.inputs is None else row.inputs.laid([row.inputs], ids)
        further = {name: value.to(device) for name, value in further.items()}
        with _answering(self.model, self.precision):
            logits = self.model(input_ids=ids, use_cache=False, **further).logits
        own = logits[0, -len(row.ids) : -1]  # an adapter that is a prompt puts tokens of its own before
        return torch.log_softmax(own.float(), dim=-1).cpu()


@dataclass
class _Sums:
    """Sums over the predicted tokens that are compared."""

    tokens: int = 0
    divergence: float = 0.0
    same: int = 0
    trained_loss: float = 0.0
    other_loss: float = 0.0

    def add(self, trained: Tensor, other: Tensor, targets: Tensor) -> None:
        """Add those of one row: two float32[predicted vocab], int64[predicted]."""
        rows = torch.arange(len(targets))
        self.tokens += len(targets)
        self.divergence += float((trained.exp() * (trained - other)).double().sum())
        self.same += int((trained.argmax(-1) == other.argmax(-1)).sum())
        self.trained_loss -= float(trained[rows, targets].double().sum())
        self.other_loss -= float(other[rows, targets].double().sum())


def _compare(trained: _Side, other: _Side, request: ExportRequest, name: str) -> _Sums:
    sums = _Sums()
    for row in request.rows:
        p, q = trained.log_probs(row), other.log_probs(row)
        if p.shape != q.shape:
            message = f"{name} has {q.shape[-1]} tokens in its vocabulary, and the trained model {p.shape[-1]}"
            raise ExportError(message, "this is a mistake of the export")
        said = torch.tensor([float(weight) > 0 for weight in row.weights[1:]])
        said = said if bool(said.any()) else torch.ones_like(said)
        sums.add(p[said], q[said], torch.tensor(list(row.ids[1:]))[said])
    return sums


def _divergence(sums: _Sums) -> float:
    """The mean, which is no less than 0 but for rounding; NaN stays."""
    mean = sums.divergence / sums.tokens
    return 0.0 if mean < 0 else mean


def _perplexity(loss: float, tokens: int) -> float:
    """exp of the mean loss; infinite where that is beyond what a float holds."""
    mean = loss / tokens
    return math.exp(mean) if mean < math.log(1e300) else math.inf


@contextmanager
def _answering(model: Any, precision: Precision | None) -> Iterator[None]:
    """Evaluation mode and no gradients, products by the policy; training mode comes back afterwards."""
    training, device = model.training, next(model.parameters()).device.type
    autocast = precision is not None and precision.autocast
    dtype = getattr(torch, precision.compute) if precision is not None and autocast else None
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=autocast):
            yield
    finally:
        model.train(training)
