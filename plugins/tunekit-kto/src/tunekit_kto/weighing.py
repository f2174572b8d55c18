"""Class weights and the classes that the data has."""

from __future__ import annotations

from tunekit.errors import DataError, Problem
from tunekit.values import Prepared
from tunekit_train.items import IndexedItems


def check_weights(good: float, bad: float, prepared: Prepared, key: str) -> None:
    """Raise DataError for a weight other than 1 of a class that has no answer, or 0 of the only one that has.

    Streamed data, and a sample, is not looked through.
    """
    if good == bad == 1 or not (isinstance(prepared, IndexedItems) and prepared.fingerprint):
        return
    found = {bool(item.label) for item in prepared}
    for label, weight, option in ((True, good, "desirable_weight"), (False, bad, "undesirable_weight")):
        called, what = "good" if label else "bad", ""
        if weight != 1 and label not in found:
            what = f"is {weight:g}, and no answer is called {called}"
        elif weight == 0 and found == {label}:
            what = f"is 0, and all answers are called {called}: none would have a loss"
        if what:
            raise DataError([Problem(f"{key}.{option}", what, "leave it out, or mend the column `label`")])
