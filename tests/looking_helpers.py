"""A fake tokenizer and a fake stage to look at: one token for each character, the answer after `>` supervised."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

LOOKING = '''
from pydantic import Field
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import *

class Nothing(PluginConfig):
    pass

class Characters:
    """Every character is a token; `~` is the special one."""
    all_special_ids = [ord("~")]
    def decode(self, ids, **options):
        return "".join(map(chr, ids))

class Letters(Plugin[Nothing]):
    """Loads that tokenizer."""
    @hookimpl
    def tunekit_load_tokenizer(self, request: LoadRequest, context: Context):
        return Characters()

class Batch(PluginConfig):
    rows: int = Field(2, description="rows of a batch")
    max_length: int = Field(8, description="the most tokens")

class TeachOptions(PluginConfig):
    batch: Batch = Field(Batch(), description="batches")
    loses: int = Field(0, description="a row that goes missing")
    drop: bool = Field(False, description="drop what is too long")

class Items(list):
    def __init__(self, items, account):
        super().__init__(items)
        self.account, self.size = account, len(self)

class Teach(Plugin[TeachOptions]):
    """`prompt>answer`, `prompt>chosen|rejected`; `+` or `-` in front is a label, `half>` weighs half."""
    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer, context: StageContext) -> Prepared:
        return Items([item for each in data if (item := self.item(each, data.account))], data.account)
    def item(self, each, account):
        if each.row == self.config.loses:
            return None
        prompt, mark, answers = each.text.partition(">")
        if not answers:
            account.leave_out(each.source, each.where, "no answer", "write one after >", each.optional)
            return None
        own, most = account.source(each.source), self.config.batch.max_length
        texts = [prompt + mark + answer for answer in answers.split("|")]
        own.lengths.update(map(len, texts))
        if max(map(len, texts)) > most:
            (own.dropped if self.config.drop else own.cut).add(each.where)
            if self.config.drop:
                return None
        weight = 0.5 if prompt == "half" else 1.0
        start = len(prompt) + 1
        sequences = [TokenSequence([ord(letter) for letter in text[:most]],
                                   [0.0] * min(start, most) + [weight] * (min(len(text), most) - start),
                                   each.row, each.where, max(0, len(text) - most)) for text in texts]
        for sequence in sequences:
            own.sequences += 1
            own.tokens += len(sequence)
            own.tokens_cut += sequence.cut
            own.supervised += sum(1 for weight in sequence.weights if weight)
        label = {"+": True, "-": False}.get(each.text[0])
        return Item(tuple(sequences), label, 0.25 if len(texts) == 2 else None)
    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        return StageResult(bundle)
'''
LOOKING_PLUGINS = {"letters": "fake_looking:Letters", "teach": "fake_looking:Teach"}


def printed(drawing: Any, width: int = 80, **options: Any) -> str:
    """What a terminal of this width shows."""
    console = Console(file=StringIO(), width=width, **options)
    console.print(drawing)
    return console.file.getvalue()
