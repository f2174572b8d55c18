"""Tiny vision-language models of two families with their processors, and images: all made in code, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekit.testing.tiny import tiny_config, tiny_model, tiny_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230), "white": (250, 250, 250)}
PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML whose contents come in parts, as templates of vision-language models take them."""


def save_pictures(folder: Path) -> Path:
    """Write an image of one colour for each, `red.png`, and return the folder."""
    import PIL.Image

    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (28, 28), colour).save(folder / f"{name}.png")
    return folder


def rows(pictures: Path, times: int = 3) -> list[dict[str, Any]]:
    """Questions about colours, as LLaMA-Factory's users write them: an image before, in the middle, or none."""
    asked = []
    for name in COLOURS:
        turns = [{"from": "human", "value": "<image>What colour?"}, {"from": "gpt", "value": name}]
        asked.append({"conversations": turns, "images": [str(pictures / f"{name}.png")]})
    return asked * times


def save_llava(folder: Path, template: str = PARTS) -> Path:
    """A LLaVA: a CLIP tower of 2 layers, a projector, and the tiny Llama of the kit with its very weights."""
    import torch
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = with_tokens("<image>")
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=tiny_config(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    text = tiny_model()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    size = {"height": 28, "width": 28}
    make: Any = LlavaProcessor
    processor = make(
        CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder


def save_idefics3(folder: Path) -> Path:
    """An Idefics3, the family of SmolVLM: images in tiles, with tokens around them, and a connector that shuffles."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = with_tokens("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = Idefics3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        text_config=tiny_config().to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 28}, max_image_size={"longest_edge": 28}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=PARTS)
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """A Qwen2-VL: pixels as patches of all images in a row, positions in three directions.

    Saved without its processor, which needs torchvision for videos: `still_processor` makes one for still images.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = with_tokens("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    text = {**tiny_config().to_dict(), "model_type": "qwen2_vl_text", "architectures": None}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=511,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def still_processor(folder: str) -> Any:
    """The processor of Qwen2-VL without the part that reads videos."""
    from transformers import AutoTokenizer, ProcessorMixin, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class StillProcessor(Qwen2VLProcessor):  # type: ignore[misc]
        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = None
            make: Any = ProcessorMixin.__init__
            make(self, image_processor, tokenizer, chat_template=chat_template)

    template = PARTS.replace("'<image>'", "'<|vision_start|><|image_pad|><|vision_end|>'")
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)
    return StillProcessor(images, AutoTokenizer.from_pretrained(folder), chat_template=template)


def with_tokens(*tokens: str) -> Any:
    """The tokenizer of the kit with further special tokens, and no template of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = None
    assert len(tokenizer) <= tiny_config().vocab_size
    return tokenizer


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": save_llava,
    "idefics3": save_idefics3,
    "qwen2_vl": save_qwen2_vl,
}
