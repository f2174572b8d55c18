"""Which tricks of the engine hold in which way to train in several processes: one table.

A trick that is not named here for a way holds there, and the tests have shown that it does. What does not hold is
switched off where another way gives the same numbers, and refused where none does; the record keeps the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunekit_train.parallel import Trick

TRICKS: Mapping[Trick, Mapping[str, str]] = {
    "lora_product": {
        "zero3": "a layer's weights are here only while the layer itself is called, and one product calls its parts",
    },
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
