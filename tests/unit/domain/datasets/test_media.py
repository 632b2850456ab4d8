from typing import Any

import pytest

from app.domain.datasets import LabelledImageRecord, TranscribedAudioRecord
from app.domain.datasets.limits import MAX_MEDIA_BYTES
from tests.unit.domain.datasets.samples import (
    PNG,
    WAV,
    archive,
    data_url,
    lines,
    parquet,
    records_of,
    refusal_of,
)

IMAGES = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(16),
    "gif": b"GIF89a" + bytes(16),
    "bmp": b"BM" + bytes(16),
    "webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(16),
}
AUDIO = {
    "wav": WAV,
    "flac": b"fLaC" + bytes(16),
    "ogg": b"OggS" + bytes(16),
    "mp3_with_tag": b"ID3\x04" + bytes(16),
    "mp3": b"\xff\xfb\x90\x00" + bytes(16),
}


def image(value: Any, label: Any = "x") -> bytes:
    return lines({"image": value, "label": label})


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_an_image_arrives_as_bytes(content: bytes) -> None:
    assert records_of(image(data_url(content))) == [LabelledImageRecord(content, "x")]


@pytest.mark.parametrize("content", AUDIO.values(), ids=AUDIO)
def test_a_recording_arrives_as_bytes(content: bytes) -> None:
    line = lines({"audio": data_url(content, "audio/x-wav;codecs=1"), "text": "hi"})
    assert records_of(line) == [TranscribedAudioRecord(content, "hi")]


REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "path_without_zip": (image("a.png"), ("line 1", "'a.png'", "zip", "data:")),
    "web_address": (image("https://example.com/a.png"), ("'image'", "nothing is fetched")),
    "number": (image(1), ("'image'", "data:image/")),
    "empty": (image(""), ("'image'", "path")),
    "neither": (lines({"image": None, "label": "x"}), ("'image' or 'file_name'", "neither")),
    "both": (lines({"image": data_url(PNG), "file_name": "a", "label": "x"}), ("both",)),
    "audio_as_image": (image(data_url(PNG, "audio/wav")), ("data:image/",)),
    "no_base64": (image("data:image/png,abc"), ("base64",)),
    "bad_base64": (image("data:image/png;base64,???"), ("'image'", "no valid base64")),
    "nothing_in_it": (image(data_url(b"")), ("'image' is empty",)),
    "text_as_image": (image(data_url(b"hello world")), ("no PNG", "hello wo")),
    "wav_as_image": (image(data_url(WAV)), ("no PNG", "RIFF")),
    "webp_as_audio": (
        lines({"audio": data_url(IMAGES["webp"], "audio/wav"), "text": "x"}),
        ("'audio' is no WAV",),
    ),
    "label_number": (image(data_url(PNG), 3), ("'label'", "str", "int")),
    "label_missing": (lines({"image": data_url(PNG)}), ("'label' is missing",)),
    "label_empty": (image(data_url(PNG), " "), ("'label' is empty",)),
    "too_large": (
        parquet({"image": [PNG + bytes(MAX_MEDIA_BYTES)], "label": ["x"]}, compression="none"),
        ("row 1", f"{MAX_MEDIA_BYTES:,}"),
    ),
    "text_empty": (lines({"audio": data_url(WAV, "audio/wav"), "text": ""}), ("'text' is empty",)),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_wrong_media_are_refused_by_field(content: bytes, told: tuple[str, ...]) -> None:
    message = refusal_of(content).message
    for words in told:
        assert words in message


def test_an_image_may_be_larger_than_other_records() -> None:
    large = PNG + bytes(3 << 20)
    assert records_of(image(data_url(large)))[0].image == large
    assert records_of(archive({"manifest.jsonl": image("a"), "a": large}))[0].image == large
