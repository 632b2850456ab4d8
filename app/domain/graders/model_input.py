"""What graders that ask a model share: the messages they take, and reading a model's answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.graders.grading import Completion, GradingFailed, ModelPrompt, Sample, Sampling
from app.domain.graders.templates import Template, parse_template
from app.domain.graders.wire import GraderWire
from app.domain.graders.wire import Template as TemplateText

# An answer longer than this is not looked through for its result.
MAX_ANSWER_CHARACTERS = 20_000

_THOUGHT_ENDS = "</think>"


class InputText(GraderWire):
    type: Literal["input_text"]
    text: TemplateText


class OutputText(GraderWire):
    type: Literal["output_text"]
    text: TemplateText


Part = Annotated[InputText | OutputText, Field(discriminator="type")]


class GraderMessage(GraderWire):
    """A message to the grading model; text only."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TemplateText | Part | Annotated[list[TemplateText | Part], Field(min_length=1)]


Messages = Annotated[list[GraderMessage], Field(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The templates of the messages, and what is asked for in the end."""

    model: str
    messages: tuple[tuple[str, tuple[Template, ...]], ...]
    sampling: Sampling
    form: str

    def prompt(self, sample: Sample) -> ModelPrompt:
        """Put in the values of a sample. Raises: GradingFailed, naming a variable."""
        messages = [
            {"role": role, "content": "".join(part.render(sample) for part in parts)}
            for role, parts in self.messages
        ]
        # In the place of OpenAI's response format, which binds the model to such an object. Not
        # as a system message: some chat templates know none.
        if messages[-1]["role"] == "user":
            messages[-1]["content"] += f"\n\n{self.form}"
        else:
            messages.append({"role": "user", "content": self.form})
        return ModelPrompt(self.model, tuple(messages), self.sampling)


def parse_messages(
    model: str, messages: list[GraderMessage], sampling: Sampling, form: str, where: str
) -> Conversation:
    """Read the templates of all messages. Raises: InvalidInput, naming the field."""
    return Conversation(
        model,
        tuple(
            (message.role, tuple(_parts(message, f"{where}[{index}].content")))
            for index, message in enumerate(messages)
        ),
        sampling,
        form,
    )


def refuse_refusals(completion: Completion) -> None:
    """Raise GradingFailed where the model did not answer."""
    if completion.refusal is not None:
        raise GradingFailed(
            "model_grader_refusal_error", f"the model refused: {completion.refusal[:200]}"
        )


def refused_prompt(error: InvalidInput) -> GradingFailed:
    """Return the grader's error for a prompt that the model cannot take."""
    return GradingFailed("model_grader_server_error", error.message)


def result_of(text: str, keys: tuple[str, ...]) -> Any:
    """Return what the model's answer says: a bare JSON value, or that of a key of an object in it.

    Raises:
        GradingFailed: neither is there.
    """
    answer = text.rpartition(_THOUGHT_ENDS)[2].strip()
    if len(answer) <= MAX_ANSWER_CHARACTERS:
        try:
            whole = json.loads(answer)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, int | float | str) and not isinstance(whole, bool):
            return whole
        for found in _objects_in(answer):
            for key in keys:
                if key in found:
                    return found[key]
    raise GradingFailed(
        "model_grader_parse_error",
        f"the model's answer holds no JSON object with {keys[0]!r}: {answer[:80]!r}",
    )


def _parts(message: GraderMessage, where: str) -> Iterator[Template]:
    content = message.content
    if not isinstance(content, list):
        yield parse_template(content if isinstance(content, str) else content.text, where)
        return
    for index, part in enumerate(content):
        text = part if isinstance(part, str) else part.text
        yield parse_template(text, f"{where}[{index}]")


def _objects_in(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    position = 0
    while (position := text.find("{", position)) >= 0:
        try:
            found, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
        else:
            yield found
