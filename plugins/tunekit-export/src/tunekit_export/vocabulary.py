"""A tokenizer as GGUF holds it: tokens, their types, merges, and by which rule text is split before they apply."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import gguf

from tunekit.errors import ExportError

SPECIAL = ("bos", "eos", "unk", "pad")
REMEDY = "export the model merged"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """Everything that GGUF says of a BPE tokenizer.

    `kind` is `gpt2` where it works on bytes, `llama` where on characters, as SentencePiece does. `split` is llama.cpp's
    name of how text is cut before merges apply. `scores` rank merges for readers that have no list of them.
    """

    kind: Literal["gpt2", "llama"]
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    split: str
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    template: str | None

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write it into the header of a file."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.merges:
            writer.add_token_merges(list(self.merges))
        if self.kind == "llama":
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.adds_space)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Read a tokenizer for a model of `size` embeddings. Raises ExportError for one that GGUF cannot hold."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("the tokenizer is not one of the tokenizers library", REMEDY)
    described = json.loads(backend.to_str())
    kind, split = _kind_of(described)
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(known) >= size:
        message = f"the tokenizer has {max(known) + 1} tokens, and the model {size} embeddings"
        raise ExportError(message, "resize the embedding of the model")
    added = {token["id"]: token["special"] for token in described["added_tokens"]}
    merges = tuple(_merge(merge) for merge in described["model"]["merges"])
    ranks = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    plain = tokenizer("a")["input_ids"]
    return Vocabulary(
        kind=kind,
        tokens=tuple(known.get(index, f"[PAD{index}]") for index in range(size)),
        types=tuple(_type_of(index, known, added, tokenizer.unk_token_id, kind) for index in range(size)),
        merges=merges,
        scores=tuple(ranks.get(known.get(index, ""), -float(len(merges))) for index in range(size)),
        split=split,
        special={name: index for name in SPECIAL if (index := getattr(tokenizer, f"{name}_token_id")) is not None},
        adds_bos=tokenizer.bos_token_id is not None and plain[0] == tokenizer.bos_token_id,
        adds_eos=tokenizer.eos_token_id is not None and plain[-1] == tokenizer.eos_token_id,
        adds_space=kind == "llama" and _adds_space(described),
        template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _kind_of(described: dict[str, Any]) -> tuple[Literal["gpt2", "llama"], str]:
    """Which of GGUF's kinds a tokenizer is, and llama.cpp's name of how it cuts text. Raises ExportError for others."""
    model, steps = described["model"], _steps(described.get("pre_tokenizer"), "pretokenizers")
    if model["type"] != "BPE":
        raise ExportError(f"the tokenizer is a {model['type']}, and only BPE is written as GGUF", REMEDY)
    if model.get("byte_fallback") and [step["type"] for step in steps] in ([], ["Metaspace"]):
        return "llama", "default"
    if described.get("normalizer") not in (None, {"type": "NFC"}):
        raise ExportError("the tokenizer changes text before it cuts it, which GGUF cannot say", REMEDY)
    kinds = [step["type"] for step in steps]
    pattern = "".join(step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt2", "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "gpt2", "smollm"
    if kinds == ["Split", "ByteLevel"] and pattern in SPLITS:
        return "gpt2", SPLITS[pattern]
    raise ExportError("the tokenizer cuts text by a rule that has no name in GGUF here", REMEDY)


def _steps(described: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if described is None:
        return []
    return described[inside] if described["type"] == "Sequence" else [described]


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a space is put before the first word."""
    normalizers = _steps(described.get("normalizer"), "normalizers")
    cuts = _steps(described.get("pre_tokenizer"), "pretokenizers")
    prepends = any(step["type"] == "Prepend" for step in normalizers)
    return prepends or any(step.get("prepend_scheme", "never") != "never" for step in cuts)


_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {f"{_LETTERS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe", f"{_LETTERS}\\p{{N}}{_REST}": "qwen2"}
"""How Llama 3 and Qwen 2 cut text: they differ in how many digits stay together."""


def _type_of(index: int, known: dict[int, str], added: dict[int, bool], unknown: int | None, kind: str) -> int:
    if index not in known:
        return int(gguf.TokenType.UNUSED)
    if kind == "llama" and index == unknown:
        return int(gguf.TokenType.UNKNOWN)
    if kind == "llama" and _BYTE.fullmatch(known[index]):
        return int(gguf.TokenType.BYTE)
    if index in added:
        return int(gguf.TokenType.CONTROL if added[index] else gguf.TokenType.USER_DEFINED)
    return int(gguf.TokenType.NORMAL)


def _merge(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
