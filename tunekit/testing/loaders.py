"""What a loader has to satisfy: the weights that were saved, stored as the policy says, or an error that names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..errors import ModelNotFoundError, TunekitError
from ..values import LoadRequest, ModelBundle, Quantization
from .observing import changed, logits, snapshot
from .plugins import PluginSuite
from .runs import run_context
from .tiny import FP32, MIXED, save_tiny_model, tiny_model, tiny_tokenizer


class LoaderSuite(PluginSuite):
    """Say in `saved` how the tiny model is put where the loader finds it, where a folder of safetensors will not do.

    `tolerance` is the largest absolute difference of logits from those of the model that was saved.
    """

    tolerance: ClassVar[float] = 1e-6

    def saved(self, folder: Path) -> str:
        """Save the tiny model and return what a recipe's `model:` would say."""
        return str(save_tiny_model(folder / "model"))

    def load(self, folder: Path, **changes: Any) -> ModelBundle:
        """Load what is saved; `changes` set other fields of the request."""
        model = changes.pop("model", None) or self.saved(folder)
        context = run_context(self.make(), *self.companions, folder=folder)
        request = replace(LoadRequest(model, FP32), **changes)
        tokenizer = context.calls.own("tunekit_load_tokenizer", request=request, context=context)
        request = replace(request, tokenizer=tokenizer)
        bundle: ModelBundle = context.calls.own("tunekit_load_model", request=request, context=context)
        return bundle

    def test_it_loads_the_weights_that_were_saved(self, tmp_path: Path) -> None:
        """The outputs are those of the saved model, and training can start from them."""
        model = self.load(tmp_path).model
        difference = float((logits(model) - logits(tiny_model())).abs().max())
        assert difference <= self.tolerance, f"logits differ by {difference:.3g}"

    def test_it_loads_the_tokenizer_with_its_chat_template(self, tmp_path: Path) -> None:
        """Training and answering render with the model's own template."""
        tokenizer, expected = self.load(tmp_path).tokenizer, tiny_tokenizer()
        assert (
            tokenizer("The river is called the Amber.")["input_ids"]
            == expected("The river is called the Amber.")["input_ids"]
        )
        assert tokenizer.chat_template == expected.chat_template
        assert tokenizer.pad_token_id is not None, "batches cannot be padded"

    def test_weights_are_stored_in_the_dtype_of_the_policy(self, tmp_path: Path) -> None:
        """Whatever they were saved in."""
        bundle = self.load(tmp_path, precision=MIXED)
        assert {str(parameter.dtype) for parameter in bundle.model.parameters()} == {f"torch.{MIXED.weights}"}
        assert bundle.precision == MIXED

    def test_the_purpose_changes_no_weight(self, tmp_path: Path) -> None:
        """A run that is opened again to talk to it has the weights it was trained from."""
        train, infer = (snapshot(self.load(tmp_path, purpose=purpose).model) for purpose in ("train", "infer"))
        assert not changed(train, infer)

    def test_a_quantiser_may_swap_modules_once_the_model_is_loaded(self, tmp_path: Path) -> None:
        """What `after_load` returns is what the bundle holds."""
        swapped = tiny_model(seed=1)
        quantization = Quantization("a test", 8, after_load=lambda model: swapped)
        bundle = self.load(tmp_path, quantization=quantization)
        assert bundle.model is swapped
        assert bundle.quantization is quantization

    def test_a_change_of_the_config_is_made_or_refused(self, tmp_path: Path) -> None:
        """A loader that goes on without one would load another model than the plan says."""

        def widen(config: Any) -> None:
            config.get_text_config().max_position_embeddings = 4321

        try:
            bundle = self.load(tmp_path, configure=(widen,))
        except TunekitError:
            return
        assert bundle.model.config.get_text_config().max_position_embeddings == 4321

    def test_a_model_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        """The message says what was looked for."""
        with pytest.raises(ModelNotFoundError, match="not-a-model"):
            self.load(tmp_path, model=str(tmp_path / "not-a-model"))
