"""How a chat's answer is worded: text, and calls of functions that are read out of it."""

from collections.abc import Sequence
from typing import Any

from app.domain.ids import new_id
from worker.generation.request import Piece
from worker.generation.sampling import SampledToken
from worker.generation.vocabulary import Vocabulary
from worker.serving.answers import stream_parts
from worker.serving.tool_calls import Arguments, CallBegun, CallReader, Content, Said
from worker.serving.tool_formats import ToolFormat


class ChatWording:
    """`chat.completion` and `chat.completion.chunk`.

    Args:
        choices: how many answers there are.
        calls: how calls are written in them; None if there are none to look for.
    """

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        vocabulary: Vocabulary,
        choices: int,
        has_logprobs: bool,
        calls: ToolFormat | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._choices = choices
        self._has_logprobs = has_logprobs
        self._id_length = (calls and calls.id_length) or 0
        self._readers = [CallReader(calls) for _ in range(choices)] if calls else []
        # Tokens of a stream whose text nothing was said of yet.
        self._unsaid: list[tuple[SampledToken, ...]] = [()] * choices

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(self._choices)
        ]

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        if self._readers:
            said = self._read(piece)
            text = "".join(part.text for part in said if isinstance(part, Content))
            calls = self._calls(said)
            message["content"] = text or (None if calls else "")
            if calls:
                message["tool_calls"] = calls
        return {
            "index": piece.index,
            "message": message,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": self._finish_reason(piece),
        }

    def chunk_choices(self, piece: Piece) -> list[dict[str, Any]]:
        if not self._readers:
            return [self._text_part(part) for part in stream_parts(piece)]
        tokens = self._unsaid[piece.index] + piece.tokens
        choices = []
        for said in self._read(piece):
            delta = {"content": said.text} if isinstance(said, Content) else self._call_delta(said)
            choices.append(self._chunk(piece.index, delta, self._logprobs(tokens)))
            tokens = ()
        self._unsaid[piece.index] = tokens
        if piece.finish_reason is not None:
            logprobs = self._logprobs(tokens) if tokens else None
            choices.append(self._chunk(piece.index, {}, logprobs, self._finish_reason(piece)))
        return choices

    def _text_part(self, piece: Piece) -> dict[str, Any]:
        if piece.finish_reason is not None:
            return self._chunk(piece.index, {}, None, piece.finish_reason)
        return self._chunk(piece.index, {"content": piece.text}, self._logprobs(piece.tokens))

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _read(self, piece: Piece) -> list[Said]:
        reader = self._readers[piece.index]
        said = reader.push(piece.text)
        return said if piece.finish_reason is None else said + reader.finish()

    def _calls(self, said: Sequence[Said]) -> list[dict[str, Any]]:
        calls = [self._call(part) for part in said if isinstance(part, CallBegun)]
        for part in said:
            if isinstance(part, Arguments):
                calls[part.index]["function"]["arguments"] += part.text
        return calls

    def _call(self, begun: CallBegun) -> dict[str, Any]:
        call_id = new_id("", self._id_length) if self._id_length else new_id("call_")
        function = {"name": begun.name, "arguments": ""}
        return {"id": call_id, "type": "function", "function": function}

    def _call_delta(self, said: CallBegun | Arguments) -> dict[str, Any]:
        if isinstance(said, CallBegun):
            return {"tool_calls": [{"index": said.index, **self._call(said)}]}
        return {"tool_calls": [{"index": said.index, "function": {"arguments": said.text}}]}

    def _finish_reason(self, piece: Piece) -> str | None:
        """Return why an answer ended: one that stopped after calls waits for their results.

        One that stopped within the arguments of a call does not: nobody may act on it.
        """
        has_calls = bool(self._readers) and self._readers[piece.index].has_whole_calls
        return "tool_calls" if has_calls and piece.finish_reason == "stop" else piece.finish_reason

    def _logprobs(self, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        content = [
            {
                **self._scored(token.token_id, token.logprob),
                "top_logprobs": [self._scored(*alternative) for alternative in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self._vocabulary.text_of(token_id),
            "bytes": list(self._vocabulary.bytes_of(token_id)),
            "logprob": logprob,
        }
