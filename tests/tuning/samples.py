"""A few records of every task, and the small base model that learns them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from tests.tasks.conftest import MINILM


@dataclass(frozen=True)
class Sample:
    """Records of one task.

    Attributes:
        model: id in the catalogue.
        has_convolutions_only: the model has no linear layer but in its head.
    """

    records: list[dict[str, Any]]
    model: str = MINILM
    has_convolutions_only: bool = False


def _image(shade: int) -> str:
    content = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _sound(pitch: float) -> str:
    content = io.BytesIO()
    times = np.arange(8_000) / 16_000
    soundfile.write(content, np.sin(2 * np.pi * pitch * times) * 0.3, 16_000, format="WAV")
    return "data:audio/wav;base64," + base64.b64encode(content.getvalue()).decode()


SAMPLES: Mapping[str, Sample] = {
    "text-classification": Sample(
        [
            {"text": "A fine film, warm and well told.", "label": "good"},
            {"text": "Dull.", "label": "bad"},
            {"text": "I laughed from start to end.", "label": "good"},
            {
                "text": "Two hours that I will not get back, one too many.",
                "label": "bad",
            },
        ]
    ),
    "token-classification": Sample(
        [
            {"tokens": ["Ada", "lives", "in", "London"], "tags": ["B-PER", "O", "O", "B-LOC"]},
            {"tokens": ["Paris", "is", "far"], "tags": ["B-LOC", "O", "O"]},
        ]
    ),
    "question-answering": Sample(
        [
            {
                "question": "Who lives here?",
                "context": "Ada lives here.",
                "answers": {"text": ["Ada"], "answer_start": [0]},
            },
            {
                "question": "Where is the key?",
                "context": "The key is under the mat by the door.",
                "answers": {"text": ["under the mat"], "answer_start": [11]},
            },
        ]
    ),
    "fill-mask": Sample(
        [{"text": "The bike is in the shed behind the house."}, {"text": "We open at nine."}]
    ),
    "image-classification": Sample(
        [{"image": _image(number), "label": "ab"[number % 2]} for number in range(2)],
        model="efficientnet-lite0",
        has_convolutions_only=True,
    ),
    "automatic-speech-recognition": Sample(
        [
            {"audio": _sound(200.0), "text": "A low tone."},
            {"audio": _sound(400.0), "text": "Higher."},
        ],
        model="whisper-base",
    ),
    "feature-extraction": Sample(
        [
            {"anchor": "Where is my order?", "positive": "How do I track a parcel?"},
            {"anchor": "The tyre is flat.", "positive": "My wheel has lost its air."},
        ]
    ),
    "text2text-generation": Sample(
        [
            {"prompt": "one two", "completion": "eins zwei"},
            {"prompt": "three", "completion": "drei"},
        ],
        model="minilm-encoder-decoder",
    ),
}
