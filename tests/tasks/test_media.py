"""Images and recordings: decoded as others decode them, and refused if they are broken or huge."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers.image_utils import load_image

from app.domain.errors import InvalidInput
from worker.tasks.media import decode_audio, decode_image, media_bytes

RATE = 16_000


def image_file(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def recording(samples: Any, rate: int = RATE, format: str = "WAV", **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **options)
    return file.getvalue()


def tone(hertz: float, seconds: float, rate: int) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def declared_png(width: int, height: int) -> bytes:
    """Return a file of 60 bytes that says it is an image of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def photo() -> Image.Image:
    points = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(points)


MODES = {
    "PNG": ("RGB", "L", "1", "P", "RGBA", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "1"),
}


@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes]
)
def test_images_are_what_transformers_sees(photo: Image.Image, format: str, mode: str) -> None:
    content = image_file(photo.convert(mode), format)

    found = decode_image(content, "image")

    assert found.mode == "RGB"
    assert found.tobytes() == load_image(Image.open(io.BytesIO(content))).tobytes()


def test_photos_are_turned_upright(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Taken with the camera on its side.

    found = decode_image(image_file(photo, exif=exif.tobytes()), "image")

    assert found.size == (photo.height, photo.width)
    assert found.tobytes() == photo.transpose(Image.Transpose.ROTATE_270).tobytes()


def broken_images() -> dict[str, tuple[bytes, str]]:
    points = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = {
        format: image_file(Image.fromarray(points), format)
        for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    }
    cases = {
        f"{format} cut short": (content[: len(content) // 2], "no PNG, JPEG, WEBP, GIF, BMP")
        for format, content in whole.items()
    }
    deep = Image.fromarray(np.full((4, 4), 4_000, np.uint16))
    return cases | {
        "nothing": (b"", "no PNG"),
        "a text": (b"an image of a cat", "no PNG"),
        "TIFF": (image_file(Image.new("L", (4, 4)), "TIFF"), "no PNG"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG"),
        "wrong checksum": (whole["PNG"][:50] + b"\x00\x00" + whole["PNG"][52:], "no PNG"),
        "more pixels than we take": (declared_png(10_000, 6_000), "more than 50,000,000 pixels"),
        "more than Pillow warns of": (declared_png(12_000, 12_000), "more than 50,000,000 pixels"),
        "more than Pillow opens": (declared_png(60_000, 60_000), "more than 50,000,000 pixels"),
        "a line": (image_file(Image.new("L", (5_000, 2))), "5000 x 2 pixels: one side"),
        "16 bits": (image_file(deep), "more than 8 bits a point"),
    }


IMAGES = broken_images()


@pytest.mark.parametrize("case", IMAGES)
def test_refuses_broken_and_huge_images(case: str) -> None:
    content, message = IMAGES[case]

    with pytest.raises(InvalidInput, match=message) as error:
        decode_image(content, "image")

    assert error.value.param == "image"


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (22_050, 2), (44_100, 1)])
def test_recordings_keep_their_tone(format: str, rate: int, channels: int) -> None:
    """A tone of 440 Hz is one of 440 Hz, as long and as loud, at the model's rate."""
    samples = np.repeat(tone(440, 1.0, rate)[:, None], channels, axis=1)

    found = decode_audio(recording(samples, rate, format), RATE, 30, "audio")

    assert found.dtype == np.float32
    assert len(found) == pytest.approx(RATE, abs=RATE * 0.1 if format == "MP3" else 1)
    middle = found[4_000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(8_000)))
    assert spectrum.argmax() * RATE / 8_000 == pytest.approx(440, abs=2)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_resampling_lets_no_high_tone_through_as_a_low_one() -> None:
    """Of 15 kHz nothing is left at 16,000 samples a second: without a filter it would be 1 kHz."""
    found = decode_audio(recording(tone(15_000, 1.0, 48_000), 48_000), RATE, 30, "audio")

    assert np.abs(found[1_000:-1_000]).max() < 0.01


def test_channels_are_mixed() -> None:
    left, right = np.full(100, 0.5), np.full(100, -0.25)

    found = decode_audio(recording(np.stack([left, right], axis=1)), RATE, 30, "audio")

    assert found.tolist() == [0.125] * 100


def broken_recordings() -> dict[str, tuple[bytes, str]]:
    second = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    flac, mp3 = recording(second, format="FLAC"), recording(second, format="MP3")
    infinite = np.full(100, np.inf, np.float32)
    return {
        "nothing": (b"", "no WAV, FLAC, OGG or MP3"),
        "a text": (b"a recording of a cat", "no WAV"),
        "another kind": (recording(second, format="AU"), r"no WAV.*found AU"),
        "MP3 cut short": (mp3[: len(mp3) // 2], "of its 16,000 samples"),
        "FLAC cut short": (flac[: len(flac) // 2], "no WAV"),
        "0 seconds": (recording(np.zeros(0)), "0 seconds long"),
        "31 seconds": (recording(np.zeros(31 * RATE)), r"31\.0 seconds long; at most 30"),
        "2 hours": (recording(np.zeros(7_200 * 8_000, np.int16), 8_000, "FLAC"), r"7,200\.0 sec"),
        "too slow": (recording(second, 1_000), "1,000 samples a second"),
        "too quick": (recording(second, 2_000_000), "2,000,000 samples a second"),
        "too many channels": (recording(np.zeros((10, 9))), "9 channels"),
        "infinite": (recording(infinite, subtype="FLOAT"), "not finite"),
    }


RECORDINGS = broken_recordings()


@pytest.mark.parametrize("case", RECORDINGS)
def test_refuses_broken_and_huge_recordings(case: str) -> None:
    content, message = RECORDINGS[case]

    with pytest.raises(InvalidInput, match=message) as error:
        decode_audio(content, RATE, 30, "audio")

    assert error.value.param == "audio"


def test_a_length_that_is_a_lie_is_not_believed() -> None:
    """An MP3 has no length: what is read is bounded, whatever its header says."""
    content = recording(np.zeros(40 * RATE), format="MP3")
    half = content[: len(content) // 2]

    with pytest.raises(InvalidInput, match=r"at most 30 seconds|of its"):
        decode_audio(content + half, RATE, 30, "audio")


@pytest.mark.parametrize("medium", ["image", "audio"])
def test_requests_hold_data_urls_base64_or_bytes(medium: Any) -> None:
    text = base64.b64encode(b"\x00content").decode()
    values = [text, f"data:{medium}/x-any;base64,{text}", b"\x00content"]

    assert [media_bytes(value, medium, "inputs") for value in values] == [b"\x00content"] * 3


@pytest.mark.parametrize(
    "value", ["https://example.org/cat.png", "data:image/png,cat", "/etc/passwd", "", 5, None, {}]
)
def test_refuses_what_is_no_medium(value: Any) -> None:
    with pytest.raises(InvalidInput, match="expected image as a data:image") as error:
        media_bytes(value, "image", "inputs")
    assert error.value.param == "inputs"


def test_refuses_a_file_that_is_too_large() -> None:
    with pytest.raises(InvalidInput, match="larger than"):
        media_bytes(b"\x00" * (1 << 24 | 1), "image", "inputs")
