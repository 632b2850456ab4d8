"""Images and recordings, from the bytes that records and requests hold; bounded in what they take.

Whoever made a file may have meant it to break what opens it: its size is read before its content.
"""

import base64
import binascii
import io
import re
from math import gcd
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.signal import resample_poly

from app.domain.datasets.limits import MAX_MEDIA_BYTES
from app.domain.errors import InvalidInput

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
MAX_PIXELS = 50_000_000
# The shorter side is enlarged to what the model takes, and the longer with it.
MAX_ASPECT_RATIO = 50
MAX_CHANNELS = 8
# A filter between two rates without a common divisor is as long as the larger of them.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000

_DATA_URL = re.compile(r"data:(?:image|audio)/[\w.+-]{1,64}(?:;[\w.+-]+=[\w.+-]+)*;base64,")
# They have more than 8 bits a point, of which Pillow would keep the wrong ones.
_DEEP_MODES = ("I", "F")


def media_bytes(value: Any, medium: Literal["image", "audio"], field: str) -> bytes:
    """Return the file in a request: a data URL, base64 alone, or the bytes themselves.

    Args:
        field: of the request, for `param` of a refusal. So it is in all that follow.

    Raises:
        InvalidInput: it is none of these, or too large.
    """
    content = value if isinstance(value, bytes) else _decoded(value)
    if not content:
        raise InvalidInput(
            f"expected {medium} as a data:{medium}/…;base64, URL or as base64", param=field
        )
    if len(content) > MAX_MEDIA_BYTES:
        raise InvalidInput(f"the {medium} is larger than {MAX_MEDIA_BYTES:,} bytes", param=field)
    return content


def decode_image(content: bytes, field: str) -> Image.Image:
    """Return an image in RGB, upright; of a moving one the first picture.

    Raises:
        InvalidInput: it is broken, too large, or of a kind that is not read.
    """
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            _check_size(image, field)
            return ImageOps.exif_transpose(image).convert("RGB")
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(field) from None
    except Exception as error:  # What a broken file meets in its decoder is not said anywhere.
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InvalidInput(
            f"this is no {', '.join(IMAGE_FORMATS)} that can be read{reason}",
            param=field,
        ) from error


def decode_audio(content: bytes, rate: int, max_seconds: float, field: str) -> NDArray[np.float32]:
    """Return a recording as [samples] float32, its channels mixed, at a rate in hertz.

    Raises:
        InvalidInput: it is broken, empty, too long, or of a kind that is not read.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_recording(file, max_seconds, field)
            own_rate = file.samplerate
            expected = file.frames
            frames = file.read(int(max_seconds * own_rate) + 1, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise _unreadable_recording(field, f" ({error})") from error
    # The length in the header may be a lie in either direction.
    if len(frames) > max_seconds * own_rate:
        raise _too_long(field, max_seconds)
    if len(frames) < expected:
        raise InvalidInput(
            f"the recording ends after {len(frames):,} of its {expected:,} samples", param=field
        )
    if not np.isfinite(frames).all():
        raise InvalidInput("the recording holds samples that are not finite", param=field)
    divisor = gcd(rate, own_rate)
    mono: NDArray[np.float32] = frames.mean(axis=1)
    if own_rate != rate:
        mono = resample_poly(mono, rate // divisor, own_rate // divisor)
    return mono.astype(np.float32)


def _decoded(value: Any) -> bytes | None:
    if not isinstance(value, str):
        return None
    match = _DATA_URL.match(value)
    try:
        return base64.b64decode(value[match.end() if match else 0 :], validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_size(image: Image.Image, field: str) -> None:
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        raise _too_many_pixels(field)
    if long > short * MAX_ASPECT_RATIO:
        raise InvalidInput(
            f"the image is {image.width} x {image.height} pixels: one side is more than "
            f"{MAX_ASPECT_RATIO} times as long as the other",
            param=field,
        )
    if image.mode.startswith(_DEEP_MODES):
        raise InvalidInput(
            "the image has more than 8 bits a point; convert it to 8, so that you decide which",
            param=field,
        )


def _check_recording(file: soundfile.SoundFile, max_seconds: float, field: str) -> None:
    if file.format not in AUDIO_FORMATS:
        raise _unreadable_recording(field, f" (found {file.format})")
    if file.frames == 0:
        raise InvalidInput("the recording is 0 seconds long", param=field)
    if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        raise InvalidInput(
            f"the recording has {file.samplerate:,} samples a second; expected "
            f"{MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}",
            param=field,
        )
    if file.channels > MAX_CHANNELS:
        raise InvalidInput(
            f"the recording has {file.channels} channels; at most {MAX_CHANNELS} are read",
            param=field,
        )
    if file.frames > max_seconds * file.samplerate:
        raise _too_long(field, max_seconds, file.frames / file.samplerate)


def _too_many_pixels(field: str) -> InvalidInput:
    return InvalidInput(f"the image has more than {MAX_PIXELS:,} pixels", param=field)


def _too_long(field: str, max_seconds: float, seconds: float | None = None) -> InvalidInput:
    found = "" if seconds is None else f" {seconds:,.1f} seconds long;"
    return InvalidInput(
        f"the recording is{found or ' too long:'} at most {max_seconds:g} seconds are "
        "taken; cut it into pieces",
        param=field,
    )


def _unreadable_recording(field: str, reason: str) -> InvalidInput:
    return InvalidInput(f"this is no WAV, FLAC, OGG or MP3 that can be read{reason}", param=field)
