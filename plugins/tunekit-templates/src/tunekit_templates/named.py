"""The templates that come with this package, each under its name."""

from __future__ import annotations

from importlib.resources import files

from .template import Template


def _template(name: str, source: str, turn_end: str | None = None, *markers: str, plain: bool = False) -> Template:
    text = files(__package__).joinpath("jinja", f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return Template(name, text, turn_end, markers, source, plain)


_IM = ("<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")  # noqa: RUF001

CHATML = _template("chatml", "SmolLM2, Yi, Hermes", "<|im_end|>", *_IM)
QWEN25 = _template("qwen2.5", "Qwen/Qwen2.5-7B-Instruct", "<|im_end|>", *_IM)
QWEN3 = _template("qwen3", "Qwen/Qwen3-8B", "<|im_end|>", *_IM)
PHI3 = _template(
    "phi3", "microsoft/Phi-3-mini-4k-instruct", "<|end|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>",
)  # fmt: skip
PHI4 = _template("phi4", "microsoft/phi-4", "<|im_end|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
LLAMA2 = _template("llama2", "meta-llama/Llama-2-7b-chat-hf")
LLAMA3 = _template("llama3", "meta-llama/Meta-Llama-3-8B-Instruct", "<|eot_id|>", *_LLAMA3)
LLAMA31 = _template("llama3.1", "meta-llama/Llama-3.1-8B-Instruct", "<|eot_id|>", *_LLAMA3)
GEMMA = _template("gemma", "google/gemma-2-9b-it", "<end_of_turn>", *_GEMMA)
GEMMA3 = _template("gemma3", "google/gemma-3-4b-it", "<end_of_turn>", *_GEMMA)
MISTRAL = _template("mistral", "mistralai/Mistral-7B-Instruct-v0.3", None, "[INST]", "[/INST]")
DEEPSEEK_V2 = _template("deepseek-v2", "deepseek-ai/DeepSeek-V2-Chat")
DEEPSEEK = _template("deepseek", "deepseek-ai/DeepSeek-V3", "<｜end▁of▁sentence｜>", *_DEEPSEEK)  # noqa: RUF001
DEEPSEEK_R1 = _template(
    "deepseek-r1", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "<｜end▁of▁sentence｜>", *_DEEPSEEK  # noqa: RUF001
)  # fmt: skip
GLM4 = _template(
    "glm4", "THUDM/glm-4-9b-chat", "<|user|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"
)
COMMAND_R = _template(
    "command-r", "CohereForAI/c4ai-command-r-plus", "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
)  # fmt: skip
ZEPHYR = _template("zephyr", "HuggingFaceH4/zephyr-7b-beta")
TULU = _template("tulu", "allenai/Llama-3.1-Tulu-3-8B")
VICUNA = _template("vicuna", "lmsys/vicuna-7b-v1.5, as FastChat writes it", plain=True)
ALPACA = _template("alpaca", "Stanford Alpaca; further turns as LLaMA-Factory writes them", plain=True)
