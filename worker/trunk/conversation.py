"""Rendering a conversation with a base model's chat template, and finding who says what in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from app.domain.errors import InvalidInput

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a template takes them, and how to render the first few of them."""

    tokenizer: PreTrainedTokenizerBase
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    template: str

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        messages: Messages,
        tools: Tools,
        chat_template: str | None,
    ) -> "Conversation":
        """Take messages over.

        Raises:
            InvalidInput: there is no template, or it would ignore part of the messages.
        """
        plain_tools = [dict(tool) for tool in tools] if tools else None
        try:
            template = tokenizer.get_chat_template(chat_template, plain_tools)
        except ValueError as error:
            raise InvalidInput(
                "the base model has no chat template; train it with prompt and completion records"
            ) from error
        _refuse_ignored_fields(messages, plain_tools, template)
        return cls(
            tokenizer, [_as_template_takes(m, template) for m in messages], plain_tools, template
        )

    def assistant_turns(self) -> list[int]:
        """Return the positions of the assistant's messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def render(self, count: int, *, prompt: bool) -> str:
        """Return the text of the first `count` messages, with a generation prompt if asked.

        Raises:
            InvalidInput: the template does not accept them.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                self.messages[:count],
                tools=self.tools,
                chat_template=self.template,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise InvalidInput(
                f"the base model's chat template does not accept the messages: {error}"
            ) from error
        return str(text)

    def find_prefix(self, index: int, text: str) -> str | None:
        """Return the prompt before a turn, or None where the template does not just append."""
        try:
            before = self.render(index, prompt=True)
        except InvalidInput:
            return None
        return before if text.startswith(before) else None

    def find_span(self, index: int, text: str) -> Span | None:
        """Return where in `text` a turn's answer starts and ends, its end-of-turn token included.

        Templates that shorten earlier turns (Qwen3 drops their reasoning) do not render a turn
        alike with and without its successors: there it ends with the first end-of-turn token.
        """
        before = self.find_prefix(index, text)
        if before is None:
            return None
        is_last = index + 1 == len(self.messages)
        through = text if is_last else self.render(index + 1, prompt=False)
        trimmed = through.rstrip()
        ending = next((token for token in self._special_tokens() if trimmed.endswith(token)), None)
        if text.startswith(through) and len(trimmed) > len(before):
            return len(before), len(trimmed if ending else through)
        end = text.find(ending, len(before)) if ending else -1
        return (len(before), end + len(ending)) if ending and end >= 0 else None

    def marked_spans(self, num_turns: int) -> tuple[str, list[Span | None]]:
        """Return the text and its spans inside `{% generation %}`, one for each turn.

        Raises:
            InvalidInput: the template has no such marks.
        """
        if "generation %}" in self.template or "generation -%}" in self.template:
            variables: dict[str, Any] = self.tokenizer.special_tokens_map
            rendered: Any = render_jinja_template(
                conversations=[self.messages],
                tools=self.tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **variables,
            )
            (text,), (marks,) = rendered
            if len(marks) == num_turns:
                return text, list(marks)
        raise InvalidInput(
            "the base model's chat template does not show where the assistant's answers are in "
            "these messages"
        )

    def _special_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted((str(t.content) for t in added if t.special), key=len, reverse=True)


def _refuse_ignored_fields(
    messages: Messages, tools: list[dict[str, Any]] | None, template: str
) -> None:
    used = {field for message in messages for field, value in message.items() if value}
    if tools:
        used.add("tools")
    for field in ("tools", "tool_calls", "function_call"):
        if field in used and field not in template:
            raise InvalidInput(
                f"the base model's chat template does not support {field!r}",
                param="tools" if field == "tools" else None,
            )


def _as_template_takes(message: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Return a message in Hugging Face's form of OpenAI's: calls have objects as arguments."""
    plain = dict(message)
    plain["content"] = plain.get("content") or ""
    if plain["role"] == "developer" and "developer" not in template:
        plain["role"] = "system"
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_with_parsed_arguments(call) for call in plain["tool_calls"]]
    return plain


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise InvalidInput(f"the arguments of a tool call are not JSON: {error}") from error
    return {**call, "function": function}
