"""Bytes of activations, found by running a skeleton: the model on the meta device, with shapes and no values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tunekit.values import BYTES, Item, Precision

from .chunked import CHUNK_LOGITS
from .config import TrainConfig
from .cross_entropy import CHUNK_ELEMENTS
from .expert_shapes import with_shapes_of_experts_
from .fitting import Fitting, as_options_say
from .forward import base_model, segments_obstacle
from .layers import find_layers, first_trained
from .layout import laid_tokens
from .segments import switched

NAME = "tunekit_shapes"
WORKSPACE = 6
"""Buffers of [tokens, widest layer] that live at once while one layer is computed or differentiated."""

HEAP_GROWTH = {2: 1.7, 4: 2.1}
"""On a CPU the C library's heap keeps freed temporaries between what is saved, so that the process grows by more than
what lives in it. By bytes of the compute dtype, measured with glibc on SmolLM2-135M, 500 to 1400 tokens."""


@dataclass(frozen=True)
class Activations:
    """Peak bytes of one micro-batch beyond weights, gradients and optimiser state, by what they are for.

    `saved`: what the forward saves for the backward in all layers, of which `layers` save anything; `passed`: what goes
    from one layer into the next; `logits`: those at supervised positions with the fp32 copy that is worked on, and
    `chunked` what takes their place where the head is chunked; `workspace`: that of one layer. `growth`: of the heap.
    """

    saved: int
    layers: int
    passed: int
    logits: int
    chunked: int
    workspace: int
    growth: float = 1.0

    def bytes(self, fitting: Fitting) -> int:
        """The sum, with these means to make it less."""
        saved, one = self.saved, self.saved // max(1, self.layers)
        if fitting.checkpointing:
            saved = min(saved, one + self.layers * self.passed)
        if fitting.offload:
            saved = min(saved, one)
        head = min(self.logits, self.chunked) if fitting.chunked_head else self.logits
        return round((saved + head + self.workspace) * self.growth)


def activations(skeleton: Any, precision: Precision, config: TrainConfig, batch: Sequence[Item]) -> Activations:
    """Work out what one micro-batch needs."""
    sequences = [sequence for item in batch for sequence in item.sequences]
    lengths = [len(sequence.ids) for sequence in sequences]
    padded = config.batch.padding == "always" or segments_obstacle(skeleton) is not None
    tokens = max(lengths) * len(lengths) if padded else laid_tokens(batch, config.batch.share_prompts)
    supervised = sum(1 for sequence in sequences for weight in sequence.weights[1:] if weight)
    width, vocabulary = BYTES[precision.compute], base_model(skeleton).get_output_embeddings().weight.shape[0]
    hidden = base_model(skeleton).config.get_text_config().hidden_size
    worked_on = 3 * 4 * min(CHUNK_ELEMENTS, supervised * vocabulary)
    part = min(supervised * vocabulary, CHUNK_LOGITS) * width
    layers = find_layers(skeleton)
    return Activations(
        saved=saved_bytes(skeleton, precision, tokens),
        layers=0 if layers is None else len(layers) - first_trained(layers),
        passed=tokens * hidden * width,
        logits=supervised * vocabulary * width + worked_on,
        chunked=part + worked_on + 2 * supervised * hidden * width,
        workspace=WORKSPACE * tokens * _widest(skeleton) * width,
        growth=HEAP_GROWTH[width] if precision.device == "cpu" else 1.0,
    )


def activation_bytes(skeleton: Any, precision: Precision, config: TrainConfig, batch: Sequence[Item]) -> int:
    """Peak bytes of one micro-batch beyond weights, gradients and optimiser state, with what the options ask for."""
    return activations(skeleton, precision, config, batch).bytes(as_options_say(config.compute))


def saved_bytes(skeleton: Any, precision: Precision, tokens: int) -> int:
    """Bytes that autograd keeps after a forward over one row of so many tokens, the parameters not counted.

    The meta device knows no autocast. The whole skeleton computes in the compute dtype instead, which is the same
    where frozen weights are stored in it; weights in a wider dtype are cast for each product, and the casts are kept.
    """
    model = copy.deepcopy(skeleton).to(getattr(torch, precision.compute)).train()
    base_model(model).config.pad_token_id = None  # else transformers looks for padding, and there are no values
    updated = with_shapes_of_experts_(base_model(model))
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in own and not isinstance(tensor, torch.nn.Parameter) and tensor.layout == torch.strided:
            storages.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    keep = torch.zeros(1, dtype=torch.long, device="meta")
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with switched(base_model(model), NAME), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False, logits_to_keep=keep)
    kept = sum(tensor.untyped_storage().nbytes() for at, tensor in storages.items() if at not in parameters)
    return kept + updated * BYTES[precision.compute] + _cast_weights(model, precision)


def _cast_weights(model: Any, precision: Precision) -> int:
    """Copies in the compute dtype that autocast makes of weights stored in another."""
    width = BYTES[precision.compute]
    matrices = [each for each in model.parameters() if each.ndim == 2]
    stored = ((each, precision.trainable if each.requires_grad else precision.weights) for each in matrices)
    return sum(each.numel() * width for each, dtype in stored if dtype != precision.compute)


def _widest(model: Any) -> int:
    """Features of the widest product besides the head."""
    head = base_model(model).get_output_embeddings()
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    return max((each.out_features for each in linear), default=1)


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps, without the [seq, seq] scores: query, key, value, output and one sum per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError("a skeleton is never differentiated")


def shapes_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Attention for a skeleton: on a CPU it runs in fp32, as the segments do."""
    out: Tensor = _FusedAttention.apply(query.float(), key.float(), value.float())  # type: ignore[no-untyped-call]
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, shapes_attention)
