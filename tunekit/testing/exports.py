"""What an export target has to satisfy: it writes what was trained, reads it again, and its numbers are true."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ..catalog import EXPORTS
from ..errors import ExportError
from ..exporting import judge
from ..values import Exported, ExportRequest, ModelBundle, TokenSequence
from .observing import same, snapshot, token_ids, train_
from .plugins import PluginSuite
from .runs import calls_of, run_context
from .tiny import tiny_bundle


class ExportSuite(PluginSuite):
    """For targets of the group `tunekit.exports`. What is exported are whole weights, trained a little.

    Replace `made_of` where a target is made of something else, an adapter say. `tolerance` is the largest relative
    difference of a measured number from the one that the suite works out.
    """

    group: ClassVar[str] = EXPORTS
    tolerance: ClassVar[float] = 1e-3

    def made_of(
        self, folder: Path, content: Literal["trained", "base"] = "trained"
    ) -> tuple[ModelBundle, ExportRequest]:
        """The trained model and what is asked; with `base`, the base is given out for what was trained."""
        trained = _trained()
        target = folder / "export"
        target.mkdir()
        request = ExportRequest(
            target,
            "tiny",
            compared_rows(),
            held_out=True,
            base=tiny_bundle,
            dense=lambda original: _trained() if content == "trained" else tiny_bundle(),
        )
        return trained, request

    def export(self, bundle: ModelBundle, request: ExportRequest, folder: Path) -> Exported:
        """Have the plugin make it."""
        plugin = self.make()
        calls = calls_of(plugin)
        context = run_context(*self.companions, folder=folder)
        exported: Exported = calls.own("tunekit_export", bundle=bundle, request=request, context=context)
        return exported

    def test_what_it_writes_says_what_was_trained(self, tmp_path: Path) -> None:
        """Read again, by what reads such files."""
        bundle, request = self.made_of(tmp_path)
        found = self.export(bundle, request, tmp_path).verification
        try:
            judge("the export", found, self.plugin.config.tolerance)
        except ExportError as error:
            pytest.fail(str(error))
        assert found.reader, "it does not say what has read it"
        assert any(request.folder.iterdir()), "nothing was written"

    def test_its_numbers_are_those_of_the_models(self, tmp_path: Path) -> None:
        """Divergence of the base and perplexities, over the rows it was given."""
        bundle, request = self.made_of(tmp_path)
        expected = _expected(bundle.model, request.base().model, request.rows)
        found = self.export(bundle, request, tmp_path).verification
        assert (found.rows, found.tokens, found.held_out) == (len(request.rows), expected.pop("tokens"), True)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=self.tolerance), name

    def test_an_export_of_something_else_shows(self, tmp_path: Path) -> None:
        """Where the base was written by mistake, the numbers say so: they are those of the files."""
        bundle, request = self.made_of(tmp_path, content="base")
        found = self.export(bundle, request, tmp_path).verification
        try:
            judge("the export", found, self.plugin.config.tolerance)
        except ExportError:
            return
        pytest.fail(f"the base was written, and KL {found.kl:.3g} was measured: the files were not read again")

    def test_it_writes_into_its_folder_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rest of the run folder, and where the program was started, stay as they are."""
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        bundle, request = self.made_of(tmp_path)
        before = set(tmp_path.rglob("*"))
        self.export(bundle, request, tmp_path)
        left = {path for path in set(tmp_path.rglob("*")) - before if not path.is_relative_to(request.folder)}
        assert not left, f"left behind: {sorted(str(path) for path in left)}"

    def test_it_leaves_the_trained_model_as_it_was(self, tmp_path: Path) -> None:
        """A run goes on to be talked to, and to be exported otherwise."""
        bundle, request = self.made_of(tmp_path)
        before = snapshot(bundle.model)
        self.export(bundle, request, tmp_path)
        assert same(before, snapshot(bundle.model)), "the trained model is another one afterwards"


def compared_rows() -> tuple[TokenSequence, ...]:
    """The tokens that `train_` trains on, the first two of each row as a prompt."""
    rows = token_ids().tolist()
    return tuple(
        TokenSequence(ids, [0.0] * 2 + [1.0] * (len(ids) - 2), n, f"a test, row {n}") for n, ids in enumerate(rows, 1)
    )


def _trained() -> ModelBundle:
    bundle = tiny_bundle()
    train_(bundle.model, steps=6, learning_rate=3e-3)
    return bundle


def _expected(trained: Any, base: Any, rows: tuple[TokenSequence, ...]) -> dict[str, Any]:
    """The same numbers, worked out in float64 in one go."""
    import torch

    ids = torch.tensor([row.ids for row in rows])
    said = torch.tensor([row.weights for row in rows])[:, 1:] > 0
    with torch.no_grad():
        p, q = (model.eval()(input_ids=ids).logits[:, :-1].double().log_softmax(-1)[said] for model in (trained, base))
    targets = ids[:, 1:][said].unsqueeze(-1)
    return {
        "tokens": len(targets),
        "base_kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "trained_perplexity": math.exp(-float(p.gather(-1, targets).mean())),
        "base_perplexity": math.exp(-float(q.gather(-1, targets).mean())),
    }
