"""Images and audio of records: from a path or a data URL to bytes, and what the bytes are.

Their first bytes tell the format. Decoding them is the trainer's, which has the libraries.
"""

import base64
import binascii
import re
from typing import Any, Protocol

import msgspec

from app.domain.datasets.faults import WrongRecord, quoted
from app.domain.datasets.limits import MAX_MEDIA_BYTES
from app.domain.datasets.records import LabelledImageRecord, TranscribedAudioRecord
from app.domain.datasets.texts import check_filled

_DATA_URL = re.compile(r"data:(image|audio)/[\w.+-]{1,64}(;[\w.+-]+=[\w.+-]+)*;base64,")
_OTHER_URL = re.compile(r"(https?|s3|gs|hf|file)://", re.IGNORECASE)


class MediaFiles(Protocol):
    """Where the paths in records lead to."""

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises: WrongRecord."""


class NoMediaFiles:
    """What a file that is no zip comes with."""

    def read(self, path: str) -> bytes:
        raise WrongRecord(
            f"{quoted(path)} is a path, but this file comes alone; put it into a zip with the "
            "media, named manifest.jsonl or manifest.csv, or write a data: URL instead"
        )


class ImageLine(msgspec.Struct, forbid_unknown_fields=True):
    """A labelled image as in the file. `file_name` is what Hugging Face's image folders say."""

    label: str
    # Parquet holds bytes, alone or in a struct; the other formats text.
    image: Any = None
    file_name: str | None = None


class AudioLine(msgspec.Struct, forbid_unknown_fields=True):
    """Transcribed audio as in the file."""

    text: str
    audio: Any = None
    file_name: str | None = None


def check_image(line: ImageLine, files: MediaFiles) -> LabelledImageRecord:
    """Raises: WrongRecord."""
    check_filled(line.label, "label")
    image, where = _content(line.image, line.file_name, "image", files)
    if not _is_image(image):
        raise WrongRecord(
            f"'{where}' is no PNG, JPEG, WebP, GIF or BMP: it begins with {_beginning(image)}"
        )
    return LabelledImageRecord(image=image, label=line.label)


def check_audio(line: AudioLine, files: MediaFiles) -> TranscribedAudioRecord:
    """Raises: WrongRecord."""
    check_filled(line.text, "text")
    audio, where = _content(line.audio, line.file_name, "audio", files)
    if not _is_audio(audio):
        raise WrongRecord(
            f"'{where}' is no WAV, FLAC, OGG or MP3: it begins with {_beginning(audio)}"
        )
    return TranscribedAudioRecord(audio=audio, text=line.text)


def _content(
    value: Any, file_name: str | None, medium: str, files: MediaFiles
) -> tuple[bytes, str]:
    """Return what a field holds or names, and the field."""
    if (value is None) == (file_name is None):
        found = "both" if value is not None else "neither"
        raise WrongRecord(f"expected either '{medium}' or 'file_name', found {found}")
    where = medium if file_name is None else "file_name"
    if isinstance(value, dict):
        # As Hugging Face's datasets write a column of images or audio.
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        content = value
    else:
        content = _named(file_name if value is None else value, where, medium, files)
    if not content:
        raise WrongRecord(f"'{where}' is empty; expected {medium}")
    if len(content) > MAX_MEDIA_BYTES:
        raise WrongRecord(f"'{where}' is larger than {MAX_MEDIA_BYTES:,} bytes")
    return content, where


def _named(text: Any, where: str, medium: str, files: MediaFiles) -> bytes:
    if not isinstance(text, str) or not text:
        raise WrongRecord(f"'{where}': expected a path in the zip or a data:{medium}/…;base64, URL")
    if not text.startswith("data:"):
        if _OTHER_URL.match(text):
            raise WrongRecord(
                f"'{where}' is the URL {quoted(text)}, and nothing is fetched; put the file into "
                "a zip with the manifest, or write a data: URL"
            )
        return files.read(text)
    match = _DATA_URL.match(text)
    if match is None or match[1] != medium:
        raise WrongRecord(
            f"'{where}' begins with {quoted(text)}; expected data:{medium}/…;base64,…"
        )
    try:
        return base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise WrongRecord(f"'{where}' is no valid base64 after the comma") from None


def _is_image(content: bytes) -> bool:
    return content.startswith(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")
    ) or (content.startswith(b"RIFF") and content[8:12] == b"WEBP")


def _is_audio(content: bytes) -> bool:
    if content.startswith((b"fLaC", b"OggS", b"ID3")):
        return True
    if content.startswith(b"RIFF"):
        return content[8:12] == b"WAVE"
    # A frame of MPEG audio: eleven bits set, then a layer that is not the reserved one.
    return len(content) > 1 and content[0] == 0xFF and content[1] >> 5 == 7 and content[1] & 6 != 0


def _beginning(content: bytes) -> str:
    return repr(content[:8])
