"""The rows of the table: what each task learns from, and by how much it must gain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.datasets import (
    as_jsonl,
    as_zip,
    digits,
    movie_reviews,
    solar_cells,
    spoken,
    twitter_ner,
)
from tests.support.faq import (
    faq_categories,
    faq_chats,
    faq_question_answers,
    faq_text_pairs,
    faq_texts,
    faq_translations,
)

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """How much of the data a run learns from, and what it must gain on the rest.

    Attributes:
        margin: by which the metric must be better than the base model's; None: the loss must fall.
        bar: which it must reach; None: the margin is all.
    """

    train: int
    heldout: int
    epochs: int
    margin: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        records: returns so many records of the data, real ones.
        upload: turns records into the content of a file.
        metric: of the report.
        full: as in the table.
        small: a slice of it, in the default tests; None: another row is enough for the task there.
        inputs: what the tuned model is asked at the end, made of a record that it has not seen.
    """

    name: str
    task: str
    model: str
    data: str
    records: Callable[[int], Records]
    metric: str
    full: Size
    inputs: Callable[[dict[str, Any]], Any]
    small: Size | None = None
    upload: Callable[[Records], bytes] = as_jsonl
    method: str = "supervised"
    batch_size: int = 16
    rate: float = 1.0
    adapter: Mapping[str, Any] = field(default_factory=lambda: {"type": "lora", "r": 16})
    training: Mapping[str, Any] = field(default_factory=dict)


def _images(records: Records) -> bytes:
    return as_zip(records, "image")


def _audio(records: Records) -> bytes:
    return as_zip(records, "audio")


ROWS = (
    Row(
        name="chat",
        task="text-generation",
        model="smollm2-135m-instruct",
        data="FAQ of a builder, chats",
        records=faq_chats,
        metric="loss",
        full=Size(train=400, heldout=48, epochs=2, margin=0.4),
        inputs=lambda record: record["messages"][:-1],
        batch_size=8,
        adapter={"type": "lora", "r": 8, "alpha": 16},
        training={"max_length_tokens": 128},
    ),
    Row(
        name="sentiment",
        task="text-classification",
        model="all-minilm-l6-v2",
        data="Rotten Tomatoes, sentences of film reviews",
        records=movie_reviews,
        metric="accuracy",
        full=Size(train=3_000, heldout=1_000, epochs=2, margin=0.2, bar=0.74),
        inputs=lambda record: record["text"],
        training={"max_length_tokens": 64},
    ),
    Row(
        name="topics",
        task="text-classification",
        model="all-minilm-l6-v2",
        data="FAQ of a builder, ten categories of questions",
        records=faq_categories,
        metric="accuracy",
        small=Size(train=64, heldout=16, epochs=2),
        full=Size(train=186, heldout=50, epochs=8, margin=0.3),
        inputs=lambda record: record["text"],
        training={"max_length_tokens": 48},
    ),
    Row(
        name="entities",
        task="token-classification",
        model="all-minilm-l6-v2",
        data="tweets with ten types of entities",
        records=lambda count: twitter_ner(count, empty=0.25),
        metric="entity_f1",
        small=Size(train=64, heldout=16, epochs=1),
        full=Size(train=900, heldout=380, epochs=4, margin=0.33, bar=0.33),
        inputs=lambda record: " ".join(record["tokens"]),
        training={"max_length_tokens": 64},
    ),
    Row(
        name="answers",
        task="question-answering",
        model="all-minilm-l6-v2",
        data="FAQ of a builder: which of three passages answers",
        records=faq_question_answers,
        metric="answer_f1",
        small=Size(train=24, heldout=6, epochs=1),
        full=Size(train=400, heldout=90, epochs=4, margin=0.2),
        inputs=lambda record: {"question": record["question"], "context": record["context"]},
        training={"max_length_tokens": 384},
    ),
    Row(
        name="fill-mask",
        task="fill-mask",
        model="all-minilm-l6-v2",
        data="FAQ of a builder, raw answers",
        records=faq_texts,
        metric="loss",
        small=Size(train=32, heldout=8, epochs=1),
        full=Size(train=400, heldout=90, epochs=6, margin=2.0),
        inputs=lambda record: "The roof of the [MASK] is wet.",
        method="continued_pretraining",
        training={"max_length_tokens": 128},
    ),
    Row(
        name="search",
        task="feature-extraction",
        model="all-minilm-l6-v2",
        data="FAQ of a builder, questions and their answers",
        records=faq_text_pairs,
        metric="mrr",
        small=Size(train=64, heldout=16, epochs=2),
        full=Size(train=320, heldout=150, epochs=2, margin=0.05),
        inputs=lambda record: record["anchor"],
        training={"max_length_tokens": 64},
        batch_size=32,
    ),
    Row(
        name="translation",
        task="text2text-generation",
        model="minilm-encoder-decoder",
        data="FAQ of a builder, questions in Swedish and English",
        records=faq_translations,
        metric="loss",
        small=Size(train=24, heldout=6, epochs=1),
        full=Size(train=400, heldout=80, epochs=6, margin=2.0),
        inputs=lambda record: record["prompt"],
        batch_size=8,
        training={"max_length_tokens": 64},
    ),
    Row(
        name="digits",
        task="image-classification",
        model="efficientnet-lite0",
        data="handwritten digits (scikit-learn), at 64 pixels",
        records=digits,
        metric="accuracy",
        small=Size(train=48, heldout=16, epochs=1),
        full=Size(train=1_000, heldout=500, epochs=2, margin=0.8, bar=0.92),
        inputs=lambda record: record["image"],
        upload=_images,
        batch_size=32,
        adapter={"type": "lora", "r": 8, "alpha": 16},
        training={"image_size": 64},
    ),
    Row(
        name="solar cells",
        task="image-classification",
        model="efficientnet-lite0",
        data="solar cells, sound or defective (ELPV), at 128 pixels",
        records=lambda count: solar_cells(count, pixels=128),
        metric="accuracy",
        full=Size(train=1_200, heldout=500, epochs=3, margin=0.2, bar=0.8),
        inputs=lambda record: record["image"],
        upload=_images,
        batch_size=32,
        adapter={"type": "lora", "r": 8, "alpha": 16},
        training={"image_size": 128},
    ),
    Row(
        name="speech",
        task="automatic-speech-recognition",
        model="whisper-base",
        data="FAQ of a builder, read by a machine",
        records=spoken,
        metric="wer",
        full=Size(train=48, heldout=12, epochs=2, margin=0.2),
        inputs=lambda record: record["audio"],
        upload=_audio,
        batch_size=8,
        adapter={"type": "lora", "r": 8, "alpha": 16},
    ),
)
