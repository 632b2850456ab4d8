"""The shapes of records. Fields are named as in the files; a task or method says what it learns.

Files hold images and audio as paths or data URLs; their records hold the bytes.
"""

from typing import Annotated, Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a conversation. `weight` 0 keeps an assistant turn out of the loss.

    Attributes:
        annotations: like `audio`, what a client writes of an answer that has none.
    """

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    weight: Literal[0, 1] | None = None
    annotations: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    audio: None = None


class ChatRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation whose assistant turns are learnt."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class ReinforcementRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation to be answered, and what the grader needs to judge the answer.

    Attributes:
        item: the record's further keys, any JSON: what a grader calls `item`.
    """

    messages: list[Message]
    item: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceInput(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation to be answered."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation with a better and a worse answer."""

    input: PreferenceInput
    preferred_output: list[Message]
    non_preferred_output: list[Message]


class FeedbackRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt and a completion that is wanted (true) or not (false)."""

    prompt: str
    completion: str
    label: bool


class CompletionRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt and the completion that is learnt; or a source text and its target."""

    prompt: str
    completion: str


class TextRecord(msgspec.Struct, forbid_unknown_fields=True):
    """Plain text."""

    text: str


class LabelledTextRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A text, or a pair of texts, with its class, its target number or its set of classes.

    Exactly one of `label` and `labels` is given, and it has one type throughout a file.

    Attributes:
        label: a class if it is a str, bool or int; the target of a regression if it is a float.
        labels: all classes that hold, perhaps none.
    """

    text: str
    text_pair: str | None = None
    label: str | bool | int | float | None = None
    labels: list[str] | None = None


class TaggedTokensRecord(msgspec.Struct, forbid_unknown_fields=True):
    """Words, each with its tag: `O`, `B-<label>` or `I-<label>`."""

    tokens: list[str]
    tags: list[str]


class Entity(msgspec.Struct, forbid_unknown_fields=True):
    """The characters from `start` up to, but without, `end`."""

    start: int
    end: int
    label: str


class TextSpansRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A text and the entities in it, none of which overlap."""

    text: str
    entities: list[Entity]


class Answers(msgspec.Struct, forbid_unknown_fields=True):
    """Answers as they stand in the context; as many texts as starts, and none if there is none."""

    text: list[str]
    answer_start: list[int]


class QuestionAnswerRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A question, and where in the context its answers stand, as in SQuAD."""

    question: str
    context: str
    answers: Answers


class LabelledImageRecord(msgspec.Struct, forbid_unknown_fields=True):
    """An image, encoded as in its file, and its class."""

    image: bytes
    label: str


class TranscribedAudioRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A recording, encoded as in its file, and what is said in it."""

    audio: bytes
    text: str


class TextPairsRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A text, one that means the same and perhaps one that does not."""

    anchor: str
    positive: str
    negative: str | None = None


class ScoredPairsRecord(msgspec.Struct, forbid_unknown_fields=True):
    """Two texts and how alike they are."""

    sentence1: str
    sentence2: str
    score: float


Record = (
    ChatRecord
    | ReinforcementRecord
    | PreferenceRecord
    | FeedbackRecord
    | CompletionRecord
    | TextRecord
    | LabelledTextRecord
    | TaggedTokensRecord
    | TextSpansRecord
    | QuestionAnswerRecord
    | LabelledImageRecord
    | TranscribedAudioRecord
    | TextPairsRecord
    | ScoredPairsRecord
)


def as_template_messages(
    record: ChatRecord | ReinforcementRecord | PreferenceInput,
) -> list[dict[str, Any]]:
    """Return the messages as a chat template takes them: without absent fields and weights."""
    return [
        {
            field: value
            for field in (
                "role",
                "content",
                "name",
                "tool_calls",
                "tool_call_id",
                "function_call",
            )
            if (value := getattr(message, field)) is not None
        }
        for message in record.messages
    ]
