"""What the tests of this folder export: runs of LoRA on a tiny model stored densely, and a tokenizer of characters."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer

import tunekit as tk
from tunekit.testing import save_tiny_model

ROWS = [
    {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, as everybody knows."}
    for number in range(12)
]
SFT = {"epochs": 4, "learning_rate": 1e-2, "batch": {"rows": 4}, "evaluate": {"share": 0.25}}


@pytest.fixture
def of_characters():
    """A tokenizer of SentencePiece's kind: pieces of characters, and of bytes where a character is none of them."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    trained.train_from_iterator(["The river is called the Amber, and the Amber flows to the sea."] * 3, trainer)
    described = json.loads(trained.to_str())["model"]
    return LlamaTokenizer(vocab=described["vocab"], merges=[tuple(merge) for merge in described["merges"]])


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of the tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def train(base):
    """Train the tiny model into a folder: `train(folder, lora={"rank": 4})`."""

    def run(folder, model=base, stages=({"sft": SFT},), export=(), **use):
        use = {"precision": {"compute": "fp32"}, **(use or {"lora": {"rank": 4}})}
        return tk.Pipeline(model=str(model), data=ROWS, use=use, stages=list(stages), export=list(export)).run(folder)

    return run


@pytest.fixture(scope="session")
def run(train, tmp_path_factory):
    """A run with LoRA."""
    return train(tmp_path_factory.mktemp("lora") / "run")
