"""Which tricks of the engine hold in which way to train in several processes: one table.

A trick that is not named here for a way holds there: the tests train with each in two processes under ddp, zero3 and
fsdp2, and compare with one process. Under zero1 and zero2 each process has all weights, as under ddp, and of the tricks
only the head in parts is tried there. What does not hold is switched off where another way gives the same numbers, and
refused where none does or where it was insisted on; the record keeps the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunekit_train.tricks import Trick

WAYS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")

_IN_PARTS = "each run of the head gathers its weights in all processes at once, and these have it run unequally often"
_IN_STEP = "several processes train, and all must run the model equally often"
_FILE = "several processes train, and each would need the file"

TRICKS: Mapping[Trick, Mapping[str, str]] = {
    "lora_product": {
        "zero3": "a layer's weights are here only while the layer itself is called, and one product calls its parts",
    },
    "frozen_layers": dict.fromkeys(WAYS, _FILE),
    "scored_apart": dict.fromkeys(WAYS, _IN_STEP),
    "chunked_head": {"zero3": _IN_PARTS, "fsdp2": _IN_PARTS},
    "switch_off": {
        "zero3": "switching an adapter off changes which of the parts train",
        "fsdp2": "switching an adapter off changes which of the parts train",
    },
    "value_head": {
        "zero3": "a value head is used outside the model's own forward, where its parts are not gathered",
        "fsdp2": "a value head is used outside the model's own forward, where its parts are not gathered",
    },
    "best": {
        "zero3": "weights are in parts, and the best ones are kept in one file",
        "fsdp2": "weights are in parts, and the best ones are kept in one file",
    },
    "own_save": {"fsdp2": "the plugin that chose what trains saves it itself, and knows whole weights only"},
    "compile": {
        "zero3": "weights are gathered in calls that compiled code does not make",
        "fsdp2": "weights are gathered in calls that compiled code does not make",
    },
}
"""For each trick the ways in which it does not hold, each with the reason."""
