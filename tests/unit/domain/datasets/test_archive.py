import io
import struct
import zipfile
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.datasets import (
    LabelledImageRecord,
    TranscribedAudioRecord,
    check_dataset,
    limits,
)
from app.domain.datasets.limits import MAX_MEDIA_BYTES
from app.domain.errors import InvalidFile
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    PNG,
    USER,
    WAV,
    archive,
    chat,
    lines,
    numbered,
    outcome_of,
    records_of,
    refusal_of,
    summary_of,
    table,
)


def images(*paths: str) -> bytes:
    return lines(*({"image": path, "label": "x"} for path in paths))


GOOD = archive({"manifest.jsonl": images("a.png", "b/c.png"), "a.png": PNG, "b/c.png": PNG + b"c"})
STORED = archive({"manifest.jsonl": images("a.png"), "a.png": PNG}, zipfile.ZIP_STORED)


def test_a_manifest_names_the_media_beside_it() -> None:
    assert numbered(GOOD) == [
        (1, LabelledImageRecord(PNG, "x")),
        (2, LabelledImageRecord(PNG + b"c", "x")),
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"manifest.csv": table(["image", "label"], ["a.png", "x"]), "a.png": PNG},
        {"metadata.csv": table(["file_name", "label"], ["a.png", "x"]), "a.png": PNG},
        {"manifest.tsv": table(["image", "label"], ["./a.png", "x"], delimiter="\t"), "a.png": PNG},
        {"set/manifest.jsonl": images("a.png"), "set/a.png": PNG, "set/": b""},
        {
            "manifest.jsonl": images("a.png"),
            "a.png": PNG,
            "__MACOSX/._manifest.jsonl": b"\0",
            "__MACOSX/manifest.jsonl": b"\0",
            ".DS_Store": b"\0",
        },
        {"manifest.jsonl": images("a.png"), "a.png": PNG, "old/manifest.jsonl": b"x"},
    ],
    ids=["csv", "hugging_face", "tsv", "folder", "macos", "another_deeper"],
)
def test_the_manifest_is_found(files: Mapping[str, bytes]) -> None:
    assert records_of(archive(files)) == [LabelledImageRecord(PNG, "x")]


def test_a_manifest_may_be_of_any_kind() -> None:
    assert summary_of(archive({"manifest.jsonl": chat(USER, ASSISTANT)})).record_kind == "chat"
    content = archive({"metadata.csv": table(["audio", "text"], ["a", "hi"]), "a": WAV})
    assert records_of(content) == [TranscribedAudioRecord(WAV, "hi")]


def test_labels_of_a_manifest_have_the_type_of_all_of_them() -> None:
    # The manifest is read twice for that.
    rows = [["a", str(number)] for number in range(30_000)]
    content = archive({"manifest.csv": table(["text", "label"], *rows, ["a", "x"])})
    assert records_of(content)[0].label == "0"


def encrypted() -> bytes:
    # Bit 0 of the flags, in the file's header and in the list of files.
    content = bytearray(STORED)
    content[6] |= 1
    content[content.find(b"PK\1\2") + 8] |= 1
    return bytes(content)


def with_size(content: bytes, name: bytes, size: int) -> bytes:
    """Return a zip whose list of files says that one is of another size, unpacked."""
    changed = bytearray(content)
    entry = content.find(b"PK\1\2")
    while content[entry + 46 : entry + 46 + len(name)] != name:
        entry = content.find(b"PK\1\2", entry + 1)
    changed[entry + 24 : entry + 28] = struct.pack("<I", size)
    return bytes(changed)


BOMB = archive({"manifest.jsonl": images("a.png"), "a.png": PNG + bytes(MAX_MEDIA_BYTES)})
MANY = {f"{index}.png": bytes(4) for index in range(5)}
GIANT = archive({"manifest.jsonl": images("0.png"), **MANY})
for each in MANY:
    GIANT = with_size(GIANT, each.encode(), 0xFFFF_FFFE)

REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (archive({}), ("no manifest", "empty")),
    "no_manifest": (
        archive({"train.jsonl": b"", "a.png": PNG}),
        ("no manifest", "manifest.jsonl", "'train.jsonl'"),
    ),
    "manifest_too_deep": (archive({"a/b/manifest.jsonl": images("a.png")}), ("no manifest",)),
    "two_manifests": (
        archive({"manifest.jsonl": b"", "metadata.csv": b""}),
        ("more than one", "'manifest.jsonl', 'metadata.csv'"),
    ),
    "excel": (archive({"[Content_Types].xml": b"", "xl/a.xml": b""}), ("Excel", "CSV UTF-8")),
    "not_in_the_zip": (
        archive({"manifest.jsonl": images("a.png", "b.png"), "a.png": PNG}),
        ("line 2 of manifest.jsonl", "'b.png' is not in the zip"),
    ),
    "in_another_folder": (
        archive({"set/manifest.jsonl": images("a.png"), "set/images/A.png": PNG}),
        ("line 1 of set/manifest.jsonl", "'a.png'", "it has 'images/A.png'"),
    ),
    "path_upwards": (
        archive({"manifest.jsonl": images("../a.png"), "a.png": PNG}),
        ("line 1", "'../a.png' leads out"),
    ),
    "path_from_the_root": (archive({"manifest.jsonl": images("/etc/passwd")}), ("leads out",)),
    "path_of_windows": (archive({"manifest.jsonl": images("b\\a.png")}), ("backslashes",)),
    "entry_upwards": (archive({"manifest.jsonl": b"", "../a": b""}), ("'../a'", "leads out")),
    "entry_from_the_root": (archive({"manifest.jsonl": b"", "/a": b""}), ("'/a'", "leads out")),
    "encrypted": (encrypted(), ("encrypted", "password")),
    "compressed_otherwise": (
        archive({"manifest.jsonl": images("a")}, zipfile.ZIP_LZMA),
        ("deflate",),
    ),
    "no_image": (archive({"manifest.jsonl": images("a"), "a": b"hello"}), ("no PNG", "hello")),
    "file_too_large": (BOMB, ("line 1", "'a.png' is larger than", f"{MAX_MEDIA_BYTES:,}")),
    "all_too_large": (GIANT, ("unpacks to more than", f"{limits.MAX_ARCHIVE_BYTES:,}")),
    "file_says_it_is_small": (with_size(BOMB, b"a.png", 24), ("'a.png' is damaged",)),
    "manifest_says_it_is_small": (
        with_size(GOOD, b"manifest.jsonl", 36),
        ("the zip is damaged", "manifest"),
    ),
    "cut_off": (GOOD[:-30], ("the zip is damaged",)),
    "image_damaged": (STORED.replace(PNG, PNG[:-1] + b"x"), ("'a.png' is damaged", "CRC")),
    "manifest_damaged": (STORED.replace(b'"x"', b'"y"'), ("damaged", "manifest.jsonl")),
    "bad_record": (
        archive({"manifest.jsonl": images("a.png") + b"{}\n", "a.png": PNG}),
        ("line 2 of manifest.jsonl", "missing"),
    ),
    "bad_row": (
        archive({"manifest.csv": table(["image", "label"], ["a.png", ""]), "a.png": PNG}),
        ("line 2 of manifest.csv", "'label' is empty"),
    ),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_bad_zip_is_refused_by_what_is_in_it(content: bytes, told: tuple[str, ...]) -> None:
    message = refusal_of(content).message
    for words in told:
        assert words in message


class Watched(io.BytesIO):
    """A file that remembers its longest read."""

    longest_read = 0

    def read(self, size: int | None = -1) -> bytes:
        self.longest_read = max(self.longest_read, size or 0)
        return super().read(size)


def test_a_list_of_files_without_end_is_not_read() -> None:
    size = 100_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, size, 4, 0)
    stream = Watched(b"PK\3\4" + bytes(size) + end)
    with pytest.raises(InvalidFile, match="the list of its files is larger"):
        check_dataset(stream)
    assert stream.longest_read <= limits.MAX_ARCHIVE_DIRECTORY_BYTES


def test_a_manifest_without_records_is_no_dataset() -> None:
    assert refusal_of(archive({"manifest.jsonl": b"\n"})).code == "empty_file"


@given(
    st.sampled_from([GOOD, STORED]),
    st.integers(0, len(GOOD) - 1),
    st.binary(min_size=1, max_size=8),
)
@settings(max_examples=300)
def test_a_damaged_zip_is_read_or_refused(content: bytes, position: int, damage: bytes) -> None:
    outcome_of(content[:position] + damage + content[position + len(damage) :])


@given(st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=30)), max_size=3), st.binary())
@settings(max_examples=100)
def test_whatever_is_in_a_zip_it_is_read_or_refused(
    files: list[tuple[str, bytes]], manifest: bytes
) -> None:
    names = {name.encode("utf-8", "ignore").decode().strip("\0") or "a": one for name, one in files}
    outcome_of(archive({**names, "manifest.jsonl": manifest}))
