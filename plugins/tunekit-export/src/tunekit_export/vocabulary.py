"""A tokenizer as GGUF holds it: tokens, their types, merges, and by which rule text is split before they apply."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gguf

from tunekit.errors import ExportError

SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """Everything that GGUF says of a byte-level BPE tokenizer. `split` is llama.cpp's name of how it cuts text."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    split: str
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    template: str | None

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write it into the header of a file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        writer.add_token_merges(list(self.merges))
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
        raise ExportError("the tokenizer is not one of the tokenizers library", "export the model merged")
    described = json.loads(backend.to_str())
    split = _split_of(described)
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(known) >= size:
        message = f"the tokenizer has {max(known) + 1} tokens, and the model {size} embeddings"
        raise ExportError(message, "resize the embedding of the model")
    added = {token["id"]: token["special"] for token in described["added_tokens"]}
    plain = tokenizer("a")["input_ids"]
    return Vocabulary(
        tokens=tuple(known.get(index, f"[PAD{index}]") for index in range(size)),
        types=tuple(_type_of(index, known, added) for index in range(size)),
        merges=tuple(_merge(merge) for merge in described["model"]["merges"]),
        split=split,
        special={name: index for name in SPECIAL if (index := getattr(tokenizer, f"{name}_token_id")) is not None},
        adds_bos=tokenizer.bos_token_id is not None and plain[0] == tokenizer.bos_token_id,
        adds_eos=tokenizer.eos_token_id is not None and plain[-1] == tokenizer.eos_token_id,
        template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _split_of(described: dict[str, Any]) -> str:
    """llama.cpp's name of how text is cut before merges apply. Raises ExportError where it is none that is known."""
    if described["model"]["type"] != "BPE" or described["model"].get("byte_fallback"):
        kind = "SentencePiece" if described["model"]["type"] == "BPE" else described["model"]["type"]
        raise ExportError(f"the tokenizer is a {kind}, and byte-level BPE can be written as GGUF",
                          "export the model merged")  # fmt: skip
    if described.get("normalizer") not in (None, {"type": "NFC"}):
        raise ExportError("the tokenizer changes text before it cuts it, which GGUF cannot say", "export it merged")
    steps = _steps(described.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    pattern = "".join(step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and pattern in SPLITS:
        return SPLITS[pattern]
    raise ExportError("the tokenizer cuts text by a rule that has no name in GGUF here", "export the model merged")


def _steps(described: dict[str, Any] | None) -> list[dict[str, Any]]:
    if described is None:
        return []
    return described["pretokenizers"] if described["type"] == "Sequence" else [described]


_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {f"{_LETTERS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe", f"{_LETTERS}\\p{{N}}{_REST}": "qwen2"}
"""How Llama 3 and Qwen 2 cut text: they differ in how many digits stay together."""


def _type_of(index: int, known: dict[int, str], added: dict[int, bool]) -> int:
    if index not in known:
        return int(gguf.TokenType.UNUSED)
    if index in added:
        return int(gguf.TokenType.CONTROL if added[index] else gguf.TokenType.USER_DEFINED)
    return int(gguf.TokenType.NORMAL)


def _merge(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
