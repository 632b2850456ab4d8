"""From a request's body to running generation: model, prompt, limits, sampling."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.domain.datasets import ChatRecord, Message, as_template_messages
from app.domain.errors import InvalidInput
from app.domain.ids import new_id
from app.inference import Caller
from worker.generation.request import GenerationRequest
from worker.serving.answer_form import answer_form
from worker.serving.answers import CompletionWording, Heading, Wording
from worker.serving.body import parse
from worker.serving.chat_wording import ChatWording
from worker.serving.engine import Visit
from worker.serving.generation import Generation
from worker.serving.served_model import ServedModel
from worker.serving.wire import MAX_SEQUENCES, ChatRequest, CompletionRequest


@dataclass(frozen=True, slots=True)
class Submission:
    """A request under way.

    Attributes:
        prompt_tokens: of all prompts together, each counted once whatever `n` is.
        choices: how many sequences are generated.
    """

    generation: Generation
    heading: Heading
    wording: Wording
    prompt_tokens: int
    choices: int
    is_stream: bool
    has_stream_usage: bool


async def submit_chat(visit: Visit, body: bytes, caller: Caller) -> Submission:
    """Start what a body of `POST /v1/chat/completions` asks for.

    Raises:
        InvalidInput: naming the field at fault.
        NotFound: there is no such model.
        TooManyRequests: too many requests are waiting.
        EngineUnavailable: the model's loop has ended.
    """
    asked = parse(ChatRequest, body)
    messages = template_messages(asked.messages)
    model = await visit.resolve(asked.model)
    prompt_ids = await model.base.encode_chat(messages, asked.template_tools, model.chat_template)
    form = await answer_form(asked, model)
    limit_name = "max_tokens" if asked.max_tokens else "max_completion_tokens"
    max_tokens = _answer_limit(model, prompt_ids, "messages", asked.answer_tokens, limit_name)
    top_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    generation = model.base.loop.submit(
        [
            GenerationRequest(
                prompt_ids=tuple(prompt_ids),
                max_tokens=max_tokens,
                adapter=model.slot,
                sampling=asked.sampling(choice, model.base.vocab_size, top_logprobs, form.grammar),
                # A call that has to come is not cut: what is left of it would be none.
                stop=() if asked.is_call_required else asked.stop_strings,
                shown_special_ids=form.shown_special_ids,
            )
            for choice in range(asked.n)
        ],
        caller,
    )
    return Submission(
        generation=generation,
        heading=_heading("chatcmpl-", model),
        wording=ChatWording(model.base.vocabulary, asked.n, asked.logprobs, form.calls),
        prompt_tokens=len(prompt_ids),
        choices=asked.n,
        is_stream=asked.stream,
        has_stream_usage=asked.has_stream_usage,
    )


async def submit_completion(visit: Visit, body: bytes, caller: Caller) -> Submission:
    """Start what a body of `POST /v1/completions` asks for. Raises: as `submit_chat`."""
    asked = parse(CompletionRequest, body)
    count = len(asked.prompts) * asked.n
    if count > MAX_SEQUENCES:
        raise InvalidInput(
            f"'prompt' and 'n' ask for {count} choices; the limit is {MAX_SEQUENCES}", param="n"
        )
    model = await visit.resolve(asked.model)
    prompts = [await _prompt_ids(model, prompt) for prompt in asked.prompts]
    requests = []
    for prompt_ids in prompts:
        max_tokens = _answer_limit(model, prompt_ids, "prompt", asked.max_tokens, "max_tokens")
        requests += [
            GenerationRequest(
                prompt_ids=tuple(prompt_ids),
                max_tokens=max_tokens,
                adapter=model.slot,
                sampling=asked.sampling(choice, model.base.vocab_size, asked.logprobs),
                stop=asked.stop_strings,
                has_prompt_logprobs=asked.echo and asked.logprobs is not None,
            )
            for choice in range(asked.n)
        ]
    echoes = [
        _echo(model, prompt) if asked.echo else ""
        for prompt in asked.prompts
        for _ in range(asked.n)
    ]
    return Submission(
        generation=model.base.loop.submit(requests, caller),
        heading=_heading("cmpl-", model),
        wording=CompletionWording(model.base.vocabulary, echoes, asked.logprobs is not None),
        prompt_tokens=sum(map(len, prompts)),
        choices=len(requests),
        is_stream=asked.stream,
        has_stream_usage=asked.has_stream_usage,
    )


def template_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return OpenAI's messages as a chat template takes them, by the same code as training.

    Raises:
        InvalidInput: naming the message and the field.
    """
    try:
        checked = msgspec.convert([_said(message) for message in messages], list[Message])
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = "messages" + where.rstrip("`")
        raise InvalidInput(f"'{param}': {what.lower().replace('`', '')}", param=param) from None
    for index, message in enumerate(checked):
        if isinstance(message.content, list):
            message.content = "".join(part.text for part in message.content)
        has_call = bool(message.tool_calls) or message.function_call is not None
        if message.content is None and not has_call:
            param = f"messages[{index}].content"
            raise InvalidInput(f"'{param}' is missing; expected text", param=param)
    return as_template_messages(ChatRecord(messages=checked))


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing: the client writes every field of an answer before."""
    said = {name: value for name, value in message.items() if value is not None}
    if said.get("annotations") == []:
        del said["annotations"]
    return said


async def _prompt_ids(model: ServedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        prompt_ids = await model.base.encode_text(prompt)
        if not prompt_ids:
            raise InvalidInput("'prompt' has no tokens", param="prompt")
        return prompt_ids
    if max(prompt) >= model.base.vocab_size:
        raise InvalidInput(
            f"'prompt' has the token id {max(prompt)}; they end at {model.base.vocab_size - 1}",
            param="prompt",
        )
    return prompt


def _echo(model: ServedModel, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    text = b"".join(map(model.base.vocabulary.text_bytes_of, prompt))
    return text.decode("utf-8", errors="replace")


def _answer_limit(
    model: ServedModel, prompt_ids: Sequence[int], prompt_name: str, asked: int | None, name: str
) -> int:
    """Return how many tokens may be generated: as many as asked, or as the context holds."""
    context, given = model.base.context_length, len(prompt_ids)
    if given + (1 if asked is None else min(asked, 1)) > context:
        raise InvalidInput(
            f"'{prompt_name}' is {given} tokens long; the context of this model holds {context}, "
            "answer included",
            param=prompt_name,
            code="context_length_exceeded",
        )
    if asked is not None and given + asked > context:
        raise InvalidInput(
            f"'{prompt_name}' is {given} tokens long and '{name}' is {asked}; together they "
            f"exceed the context of this model, which holds {context}",
            param=name,
            code="context_length_exceeded",
        )
    return context - given if asked is None else asked


def _heading(prefix: str, model: ServedModel) -> Heading:
    return Heading(new_id(prefix), int(time.time()), model.name, model.fingerprint)
