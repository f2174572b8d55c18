"""A model file for Ollama beside the GGUF: its template in Go's language, parameters, and where answers end.

Source: the Ollama model file reference, https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.errors import ExportError
from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify

from .gguf_export import read_gguf, write_file
from .merged import reader
from .roles import ROLES, Roles, roles_of

if TYPE_CHECKING:
    from . import OllamaConfig

FILE = "Modelfile"
USE = "## Use\n\n```sh\nollama create my-model -f Modelfile\nollama run my-model\n```"
TRIMMED = (
    "The chat template takes blanks away from around messages, which Ollama's language cannot say: ask with messages "
    "that neither begin nor end with them."
)


def export_ollama(config: OllamaConfig, bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the GGUF file and the model file that names it."""
    tokenizer = bundle.tokenizer
    if not isinstance(tokenizer.chat_template, str):
        raise ExportError("the tokenizer has no chat template, and Ollama is for conversations", "export it as `gguf`")
    adds_bos = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    roles = roles_of(tokenizer, tokenizer.bos_token if adds_bos else "")
    path, facts = write_file(config, bundle, request)
    stops = stops_of(tokenizer, roles)
    (request.folder / FILE).write_text(model_file(path.name, roles, stops, config), encoding="utf-8")
    found = verify(bundle, request, lambda: read_gguf(path), reader())
    return Exported(found, {**facts, "stop": stops}, usage_of(roles))


def usage_of(roles: Roles) -> str:
    """What the card says of how to use it."""
    return f"{USE}\n\n{TRIMMED}" if roles.trims else USE


def model_file(gguf: str, roles: Roles, stops: list[str], config: OllamaConfig) -> str:
    """The text of the model file."""
    system = roles.system if config.system is None else config.system
    parameters = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "repeat_penalty": config.repeat_penalty,
        "num_ctx": config.context,
    }
    lines = [f"FROM ./{gguf}", f"TEMPLATE {_quoted(go_template(roles))}"]
    lines += [f"SYSTEM {_quoted(system)}"] if system is not None else []
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items() if value is not None]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def go_template(roles: Roles) -> str:
    """The template in Go's language: each message by its role, then what opens an answer.

    Ollama puts the system message, that of `SYSTEM` too, among the messages.
    """
    branches = []
    for number, role in enumerate(ROLES):
        before, after = roles.around[role]
        keyword = "if" if number == 0 else "else if"
        branches.append(f'{{{{ {keyword} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}')
    each = "".join(branches)
    return f"{_literal(roles.head)}{{{{ range .Messages }}}}{each}{{{{ end }}}}{{{{ end }}}}{_literal(roles.opening)}"


def stops_of(tokenizer: Any, roles: Roles) -> list[str]:
    """Texts at which an answer ends: the end token, and the token that the template puts behind an answer."""
    behind = (roles.around["assistant"][1] + roles.around["user"][0]).lstrip()
    first = [token for token in tokenizer.get_added_vocab() if behind.startswith(token)]
    return [stop for stop in dict.fromkeys((tokenizer.eos_token, *first)) if stop]


def _literal(text: str) -> str:
    """Text that Go's templates leave as it is."""
    return text.replace("{{", '{{ "{{" }}') if "{{" in text else text


def _quoted(text: str) -> str:
    if '"""' in text:
        raise ExportError('the template holds """, which a model file cannot', "set another template")
    return f'"""{text}"""'
