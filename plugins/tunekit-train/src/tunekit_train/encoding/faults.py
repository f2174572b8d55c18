"""Why an example cannot be trained on: one reason for each kind of fault, and what to do about this row."""

from __future__ import annotations

from typing import Any

from tunekit.errors import Problem


class Fault(Exception):
    """An example that cannot be trained on. `reason` is the same for all rows of its kind, `remedy` is this row's."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def no_answer() -> Fault:
    """A conversation in which the assistant says nothing."""
    return Fault("there is no assistant turn to train on", "add the answer, or leave the row out")


def nothing_asked() -> Fault:
    """No prompt."""
    return Fault("there is nothing to answer", "put a turn of the user before the answer, or leave the row out")


def all_masked() -> Fault:
    """No token has a weight."""
    return Fault(
        "every label is masked: no token of this row would be trained",
        "give a message a weight above 0 and something to say, or supervise more than this",
    )


def cut_away(limit: int, length: int) -> Fault:
    """The length limit leaves no room for an answer."""
    return Fault(
        "the length limit cuts off all that would be trained",
        f"max_length is {limit} and the row has {length} tokens; choose {length} to keep it whole, or shorten it",
    )


def same_answers(shortened: bool) -> Fault:
    """Nothing to prefer."""
    remedy = "they differ beyond max_length only; raise it" if shortened else "mend the pair, or leave the row out"
    return Fault("the chosen and the rejected answer are the same", remedy)


def prompts_differ() -> Fault:
    """A template that renders the prompt of a pair differently for each answer."""
    return Fault(
        "the model's chat template renders the prompt of the chosen and the rejected answer differently",
        "use a template that renders a prompt the same whatever follows, or leave the row out",
    )


def refused(error: Exception) -> Fault:
    """The template raised."""
    return Fault(
        f"the model's chat template refuses this conversation: {error}",
        "change the roles or their order to what the model was trained with",
    )


def swallowed(index: int, role: str) -> Fault:
    """The template leaves out what a message says."""
    what = "the system message" if role == "system" else f"what a message of role {role} says"
    return Fault(
        f"the model's chat template leaves out {what}",
        f"message {index + 1} would be lost: use another template, take it out of the row, or give it the weight 0",
    )


def swallowed_thinking(index: int) -> Fault:
    """The template leaves out the thinking of the last answer."""
    return Fault(
        "the model's chat template leaves out the thinking of the last answer",
        f"message {index + 1} would lose it: use a template that shows thinking, or choose `thinking: drop`",
    )


def swallowed_call(index: int) -> Fault:
    """The template leaves out a tool call."""
    return Fault(
        "the model's chat template leaves out a tool call",
        f"message {index + 1} would lose it: name a tool format, or use a template that writes tool calls",
    )


def rewritten(index: int) -> Fault:
    """The place of a turn cannot be told."""
    return Fault(
        "the model's chat template rewrites a message so that its place cannot be told for sure",
        f"it is message {index + 1}; use a template with {{% generation %}} around the assistant's turns, "
        "or leave the row out",
    )


def never_ends() -> Fault:
    """No answer is closed by a special token."""
    return Fault(
        "no end-of-turn token is trained: the model would never learn to stop",
        "the chat template ends the assistant's turns with no special token; use one that does, or make the token "
        "that it writes there a special token",
    )


def doubled_start(token: str) -> Fault:
    """The rendered conversation begins with two start tokens."""
    return Fault(
        "the conversation begins with two start tokens",
        f"the chat template writes {token} twice; take one out of the template",
    )


def images() -> Fault:
    """Text only here."""
    return Fault(
        "the row has images, and this model reads text alone",
        "name a model that reads images and add `vision: {}` to use, or leave the row out",
    )


def unreadable_image(error: Exception) -> Fault:
    """No image there."""
    return Fault("an image cannot be read", f"{error}; mend its path or file, or leave the row out")


def swallowed_image(given: int, written: int) -> Fault:
    """The template leaves out an image."""
    return Fault(
        "the model's chat template leaves out an image, or repeats one",
        f"the row has {given} images, and {written} places are written for them; use another template",
    )


def images_too_long(limit: int, length: int) -> Fault:
    """An image cannot be cut."""
    return Fault(
        "the row has images and is longer than the length limit",
        f"max_length is {limit} and the row has {length} tokens; choose {length}, or `too_long: drop`",
    )


def images_in_pair() -> Fault:
    """Images are for conversations."""
    return Fault("the row has images, and pairs of answers are trained on text alone", "train on it with sft")


def no_tool_format() -> Fault:
    """Tools without a way to write them."""
    return Fault(
        "the row uses tools, and the model's chat template cannot write them",
        "name a tool format, or use a model whose chat template knows tools",
    )


def tools_not_written(error: object) -> Fault:
    """The tool format refuses a conversation, or does not keep its prompt."""
    return Fault("the tool format cannot write this conversation", f"{error}")


def reserved() -> Fault:
    """A text with our private characters."""
    return Fault(
        "a message contains a character from U+F0010 to U+F0012, which is reserved for rendering",
        "remove it from the message",
    )


def forged(piece: str) -> Fault:
    """A tokenizer, or a template, that makes a special token of what is to stay text."""
    return Fault("special tokens in a message cannot be kept apart as text", f"remove {piece!r} from the message")


def no_template() -> Problem:
    """Conversations and no template: wrong with every row."""
    return Problem(
        "model",
        "its tokenizer has no chat template, and the data are conversations",
        "use an instruct model, give the tokenizer a chat template, or train on documents (a `text` column)",
    )


def no_offsets(tokenizer: Any) -> Problem:
    """A tokenizer that does not say which characters a token covers: wrong with every row."""
    return Problem(
        "model",
        f"its tokenizer ({type(tokenizer).__name__}) does not tell which characters a token covers, so answers "
        "cannot be told from prompts",
        "use a model with a tokenizer.json",
    )
