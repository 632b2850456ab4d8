"""Inputs for models of tasks whose training and held-out files were deleted."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from app.domain.datasets import CompletionRecord, TranscribedAudioRecord
from app.domain.errors import ExportFailed
from worker.tasks import Example, Task

_TEXTS = (
    "The parcel came two days late, but everything in it was whole.",
    "Ada Lovelace wrote the first program in London in 1843.",
)
_SAMPLE_RATE = 16_000
_SIDE_PIXELS = 224


def fixed_examples(name: str, task: Task) -> list[Example]:
    """Return a few examples for a task. Raises: ExportFailed, if there are none for it."""
    if name == "text2text-generation":
        return _encoded(task, [CompletionRecord(prompt=one, completion=one) for one in _TEXTS])
    if name == "automatic-speech-recognition":
        return _encoded(task, [TranscribedAudioRecord(audio=_sound(), text=_TEXTS[0])])
    if name not in _INPUTS:
        raise ExportFailed(
            f"a model for {name} is compared on records of its job, and both files are gone"
        )
    return [task.encode_input(value) for value in _INPUTS[name](task)]


def _encoded(task: Task, records: Sequence[Any]) -> list[Example]:
    examples: list[Example] = []
    for record in records:
        encoded = task.encode(record, 128)
        examples += [encoded] if isinstance(encoded, Example) else encoded
    return examples


def _masked(task: Any) -> list[str]:
    return [text.replace("late", task.tokenizer.mask_token) for text in _TEXTS[:1]]


def _picture(_: Any) -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE_PIXELS, _SIDE_PIXELS, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    return [content.getvalue()]


def _sound() -> bytes:
    content = io.BytesIO()
    tone = np.sin(np.arange(_SAMPLE_RATE) * 0.1).astype(np.float32) * 0.1
    soundfile.write(content, tone, _SAMPLE_RATE, format="WAV")
    return content.getvalue()


_INPUTS: dict[str, Any] = {
    "text-classification": lambda _: _TEXTS,
    "token-classification": lambda _: _TEXTS,
    "feature-extraction": lambda _: _TEXTS,
    "fill-mask": _masked,
    "image-classification": _picture,
    "question-answering": lambda _: [{"question": "Who wrote it?", "context": _TEXTS[1]}],
}
