"""The value head of a reward model, which goes beside the weights that it stands on."""

from __future__ import annotations

from pathlib import Path

from tunekit_train.heads import FILE

USAGE = f"""It is a reward model. Its reward for a text, such as a rendered conversation, is what the head makes of the
last token:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
head = load_file(f"{{{{FOLDER}}}}/{FILE}")


def reward(text):
    with torch.no_grad():
        said = model(**tokenizer(text, return_tensors="pt").to(model.device), output_hidden_states=True)
    hidden = said.hidden_states[-1][0, -1].float().cpu()
    return float(torch.nn.functional.linear(hidden, head["weight"], head["offset"]))
```""".replace("{{FOLDER}}", "{FOLDER}")


def head_usage(folder: Path) -> str:
    """How the head in a folder is used; nothing where there is none."""
    return USAGE if (folder / FILE).is_file() else ""
