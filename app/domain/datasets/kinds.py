"""The kinds of record: how one is recognised, decoded and checked. One entry adds a kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.domain.datasets import conversations, media, texts
from app.domain.datasets.limits import MAX_MEDIA_RECORD_BYTES, MAX_RECORD_BYTES
from app.domain.datasets.records import (
    ChatRecord,
    CompletionRecord,
    FeedbackRecord,
    LabelledTextRecord,
    PreferenceRecord,
    QuestionAnswerRecord,
    ScoredPairsRecord,
    TaggedTokensRecord,
    TextPairsRecord,
    TextRecord,
    TextSpansRecord,
)

Keys = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecordKind:
    """One shape of record.

    Attributes:
        is_meant: whether a record, known to be an object, is meant to be of this kind.
        example: one line of JSON.
        struct: what a line is decoded into; for a kind with keys of its own choice, a dict.
        check: checks what was decoded and returns the Record, or raises WrongRecord. If the kind
            has media, it also takes the MediaFiles that paths lead to.
        agree: checks a record against the first one of its file, or raises WrongRecord.
    """

    name: str
    is_meant: Callable[[Keys], bool]
    example: str
    struct: Any
    check: Callable[..., Any]
    has_media: bool = False
    agree: Callable[[Any, Any], None] | None = None
    decoder: "msgspec.json.Decoder[Any]" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", msgspec.json.Decoder(self.struct))

    @property
    def max_bytes(self) -> int:
        """The most that one record may take in the file."""
        return MAX_MEDIA_RECORD_BYTES if self.has_media else MAX_RECORD_BYTES


def _any_of(*keys: str) -> Callable[[Keys], bool]:
    return lambda record: any(key in record for key in keys)


def _one_of_each(*groups: tuple[str, ...]) -> Callable[[Keys], bool]:
    return lambda record: all(any(key in record for key in group) for group in groups)


# In order: the first that a record is meant to be is its kind.
RECORD_KINDS: tuple[RecordKind, ...] = (
    RecordKind(
        name="chat",
        is_meant=lambda record: (
            "messages" in record and not conversations.is_for_reinforcement(record)
        ),
        example=(
            '{"messages": [{"role": "user", "content": "…"}, '
            '{"role": "assistant", "content": "…"}]}'
        ),
        struct=ChatRecord,
        check=conversations.check_chat,
    ),
    RecordKind(
        name="reinforcement",
        is_meant=_any_of("messages"),
        example='{"messages": [{"role": "user", "content": "…"}], "reference_answer": "…"}',
        struct=dict[str, Any],
        check=conversations.check_reinforcement,
    ),
    RecordKind(
        name="preference",
        is_meant=_any_of("preferred_output", "non_preferred_output"),
        example=(
            '{"input": {"messages": [{"role": "user", "content": "…"}]}, '
            '"preferred_output": [{"role": "assistant", "content": "a better answer"}], '
            '"non_preferred_output": [{"role": "assistant", "content": "a worse answer"}]}'
        ),
        struct=PreferenceRecord,
        check=conversations.check_preference,
    ),
    RecordKind(
        name="feedback",
        is_meant=_one_of_each(("label",), ("prompt", "completion")),
        example='{"prompt": "…", "completion": "…", "label": true}',
        struct=FeedbackRecord,
        check=texts.check_feedback,
    ),
    RecordKind(
        name="completion",
        is_meant=_any_of("prompt", "completion"),
        example='{"prompt": "…", "completion": "…"}',
        struct=CompletionRecord,
        check=texts.check_completion,
    ),
    RecordKind(
        name="tagged_tokens",
        is_meant=_any_of("tokens", "tags"),
        example='{"tokens": ["Ada", "left"], "tags": ["B-person", "O"]}',
        struct=TaggedTokensRecord,
        check=texts.check_tagged_tokens,
    ),
    RecordKind(
        name="text_spans",
        is_meant=_any_of("entities"),
        example=('{"text": "Ada left", "entities": [{"start": 0, "end": 3, "label": "person"}]}'),
        struct=TextSpansRecord,
        check=texts.check_text_spans,
    ),
    RecordKind(
        name="question_answer",
        is_meant=_any_of("context", "answers"),
        example=(
            '{"question": "Who left?", "context": "Ada left", '
            '"answers": {"text": ["Ada"], "answer_start": [0]}}'
        ),
        struct=QuestionAnswerRecord,
        check=texts.check_question_answer,
    ),
    RecordKind(
        name="transcribed_audio",
        is_meant=lambda record: "audio" in record or ("file_name" in record and "text" in record),
        example='{"audio": "clips/1.wav", "text": "…"}',
        struct=media.AudioLine,
        check=media.check_audio,
        has_media=True,
    ),
    RecordKind(
        name="labelled_image",
        is_meant=_any_of("image", "file_name"),
        example='{"image": "images/1.png", "label": "…"}',
        struct=media.ImageLine,
        check=media.check_image,
        has_media=True,
    ),
    RecordKind(
        name="text_pairs",
        is_meant=_any_of("anchor", "positive"),
        example='{"anchor": "…", "positive": "…", "negative": "…"}',
        struct=TextPairsRecord,
        check=texts.check_text_pairs,
    ),
    RecordKind(
        name="scored_pairs",
        is_meant=_any_of("sentence1", "sentence2"),
        example='{"sentence1": "…", "sentence2": "…", "score": 0.5}',
        struct=ScoredPairsRecord,
        check=texts.check_scored_pairs,
    ),
    RecordKind(
        name="labelled_text",
        is_meant=_one_of_each(("text",), ("label", "labels", "text_pair")),
        example='{"text": "…", "label": "…"}',
        struct=LabelledTextRecord,
        check=texts.check_labelled_text,
        agree=texts.agree_on_labels,
    ),
    RecordKind(
        name="text",
        is_meant=_any_of("text"),
        example='{"text": "…"}',
        struct=TextRecord,
        check=texts.check_text,
    ),
)
