"""Prompts become tokens: texts as they are, conversations through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Message, ModelBundle, Prompt


def encode_prompt(prompt: Prompt, bundle: ModelBundle) -> list[int]:
    """Return the token ids of a prompt, at least one."""
    tokenizer = bundle.tokenizer
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    else:
        ids = encode_conversation(prompt, bundle)
    if ids:
        return ids
    if tokenizer.bos_token_id is None:
        raise TunekitError("a prompt is empty and the tokenizer has no token to begin with", "give some text")
    return [tokenizer.bos_token_id]


def encode_conversation(messages: Sequence[Message], bundle: ModelBundle) -> list[int]:
    """Write a conversation as the model was trained to read it, ready for its answer.

    A special token that a message mentions stays text, as in training: it can neither end a turn nor forge one.
    """
    import jinja2

    tokenizer = bundle.tokenizer
    if not tokenizer.chat_template:
        raise TunekitError(
            f"the tokenizer of {bundle.source} has no chat template, so the model cannot answer a conversation",
            "prompt it with plain text, or use an instruct model",
        )
    if not messages or messages[-1].role == "assistant":
        end = "is empty" if not messages else "ends with the assistant's own turn"
        raise TunekitError(f"a conversation {end}, so there is nothing to answer", "end it with a user turn")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if any(message.images for message in messages):
        raise TunekitError(f"a conversation has images, and {bundle.source} reads text alone", "leave them out")
    try:
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
    except jinja2.TemplateError as error:
        message = f"the chat template of {bundle.source} refuses a conversation: {error}"
        raise TunekitError(message, "use only the roles it knows, in the order it expects") from error
    return list(ids)


def end_tokens(bundle: ModelBundle) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config."""
    config = getattr(bundle.model, "generation_config", None)
    named: Any = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(int(token) for token in [*ids, bundle.tokenizer.eos_token_id] if token is not None)


def context_length(model: Any) -> int | None:
    """How many tokens the model reads, None where its config sets no limit.

    Dynamically scaled positions reach `factor` times as far as `max_position_embeddings` says.
    """
    text = model.config.get_text_config(decoder=True)
    limit: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope
    if limit is not None and rope.get("rope_type") == "dynamic":
        return int(limit * rope["factor"])
    return limit


def special_stops(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """The ids of stop strings that are special tokens, which never show in the text."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return frozenset(special[text] for text in stop if text in special)
