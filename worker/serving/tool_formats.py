"""How models write calls of functions.

Every family has its own way, which its chat template shows: it renders earlier calls as the model
was trained to write them. The registry below says by what a template is told.
"""

from dataclasses import dataclass

from app.domain.registry import Registry


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls: a JSON object each, between fixed texts.

    Attributes:
        marks: a template that has all of these is of this kind.
        begin: stands before the first call; empty if a call begins the answer by its brace alone.
        between: stands between two calls.
        end: stands after the last call.
        arguments: the field of the object that holds a call's arguments.
        id_length: how many characters the ids of calls have, since some templates check it; None
            leaves them to us.
    """

    marks: tuple[str, ...]
    begin: str
    between: str
    end: str
    arguments: str = "arguments"
    id_length: int | None = None


TOOL_FORMATS: Registry[ToolFormat] = Registry("tool format")
# Hermes 2 and 3, Qwen 2.5 and 3: each call in its own pair of tags.
TOOL_FORMATS.add(
    "hermes",
    ToolFormat(
        marks=("<tool_call>",),
        begin="<tool_call>\n",
        between="\n</tool_call>\n<tool_call>\n",
        end="\n</tool_call>",
    ),
)
# Mistral 7B v0.3 to Small 24.09: a list of calls after a token of its own.
TOOL_FORMATS.add(
    "mistral",
    ToolFormat(
        marks=("[TOOL_CALLS]",),
        begin="[TOOL_CALLS] [",
        between=", ",
        end="]",
        id_length=9,
    ),
)
# Llama 3.1 to 3.3: the answer is the call.
TOOL_FORMATS.add(
    "llama",
    ToolFormat(
        marks=('"parameters"', "<|start_header_id|>"),
        begin="",
        between="; ",
        end="",
        arguments="parameters",
    ),
)


def find_tool_format(template: str) -> ToolFormat | None:
    """Return how a chat template's models write calls; None if it is no way known here."""
    for name in TOOL_FORMATS:
        if all(mark in template for mark in TOOL_FORMATS[name].marks):
            return TOOL_FORMATS[name]
    return None
