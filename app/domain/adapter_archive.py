"""An adapter as people upload it: a zip of the directory that `peft` saves.

It is checked without torch, at the upload and again by the trainer that unpacks it. Nothing that
could be pickle is ever opened.
"""

import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from app.domain.adapter_config import (
    CONFIG_NAME,
    adapter_of,
    base_model_of,
    check_config,
    kind_of,
)
from app.domain.adapter_tensors import check_tensors
from app.domain.datasets.faults import quoted, quoted_list, shortened, wrong_file
from app.domain.datasets.zips import DAMAGED, open_zip
from app.domain.safetensors_header import read_header
from app.domain.tasks import TASKS

WEIGHTS_NAME = "adapter_model.safetensors"
TASK_NAME = "task.json"

MAX_UNPACKED_BYTES = 4 << 30
MAX_FILES = 256
MAX_JSON_BYTES = 1 << 20
MAX_CLASSES = 10_000
MAX_CLASS_CHARACTERS = 1_000

_CHUNK_BYTES = 1 << 20

# What loaders of weights unpickle, by name.
_PICKLES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
    | {".7z", ".gz", ".h5", ".tar", ".tgz", ".zip"}
)
# What is saved beside an adapter: cards, tokenizers, templates, logs of the training, and what an
# export of ours adds. None of it is read.
_IGNORED_SUFFIXES = frozenset(
    {".jinja", ".json", ".jsonl", ".md", ".model", ".tiktoken", ".txt", ".yaml", ".yml"}
)
_IGNORED_NAMES = frozenset(
    {"LICENSE", "NOTICE", "README", "SHA256SUMS", ".gitattributes", ".gitignore"}
)

_EXPECTED = f"a zip of the directory that peft saves: {CONFIG_NAME} and {WEIGHTS_NAME}"


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What an uploaded adapter is.

    Attributes:
        adapter: as `tunesmith.adapter` of a job.
        base_model: the name that it gives its base model; empty if it gives none.
        task: name in `app.domain.tasks.TASKS`; None: it does not say, as `peft` never does.
    """

    adapter: dict[str, Any]
    base_model: str
    task: str | None


def check_adapter(stream: BinaryIO) -> AdapterSummary:
    """Check an adapter from the first to the last byte.

    Args:
        stream: seekable.

    Raises:
        InvalidFile: saying what is wrong and what was expected.
    """
    return _read(stream, _skip)


def unpack_adapter(stream: BinaryIO, directory: Path) -> AdapterSummary:
    """Check an adapter and write its files into an existing directory.

    Raises:
        InvalidFile: as `check_adapter` does; some files may have been written.
    """

    def write(name: str, chunks: Iterator[bytes]) -> None:
        with (directory / name).open("wb") as file:
            file.writelines(chunks)

    return _read(stream, write)


def _read(stream: BinaryIO, take: Callable[[str, Iterator[bytes]], None]) -> AdapterSummary:
    archive, entries = open_zip(stream, MAX_UNPACKED_BYTES)
    files = _find(entries)
    config = _read_json(archive, files[CONFIG_NAME], CONFIG_NAME)
    kind = kind_of(config)
    check_config(config, kind)
    weights = files[WEIGHTS_NAME]
    with _damage_told_of(WEIGHTS_NAME), archive.open(weights) as content:
        header = read_header(content, weights.file_size, WEIGHTS_NAME)
    target_modules = check_tensors(header, kind, config)
    task = (
        _task_of(_read_json(archive, files[TASK_NAME], TASK_NAME)) if TASK_NAME in files else None
    )
    summary = AdapterSummary(adapter_of(config, kind, target_modules), base_model_of(config), task)
    for name, entry in files.items():
        take(name, _chunks(archive, entry, name))
    return summary


def _find(entries: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return what is read of a zip by its names."""
    if len(entries) > MAX_FILES:
        raise wrong_file(f"the zip has {len(entries):,} files; expected at most {MAX_FILES}")
    files = [entry for entry in entries if not entry.filename.endswith("/")]
    for entry in entries:
        _refuse_special(entry)
    for entry in files:
        _check_name(entry.filename)
    names = [entry.filename for entry in files]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise wrong_file(f"the zip has {quoted(repeated[0])} more than once")
    folder = _folder(names)
    found = {
        name: entry
        for entry in files
        for name in (CONFIG_NAME, WEIGHTS_NAME, TASK_NAME)
        if entry.filename == folder + name
    }
    if WEIGHTS_NAME not in found:
        raise wrong_file(f"the zip has no {WEIGHTS_NAME} beside its {CONFIG_NAME}")
    return found


def _folder(names: Sequence[str]) -> str:
    """Return where the adapter is: at the top, or in the one folder at the top."""
    if CONFIG_NAME in names:
        return ""
    found = [name for name in names if name.count("/") == 1 and name.endswith(f"/{CONFIG_NAME}")]
    if len(found) == 1:
        return found[0].removesuffix(CONFIG_NAME)
    if found:
        raise wrong_file(f"the zip has more than one adapter: {quoted_list(found, 4)}")
    has = f"it has {quoted_list(names, 4)}" if names else "it is empty"
    raise wrong_file(f"the zip has no {CONFIG_NAME}; expected {_EXPECTED}, but {has}")


def _refuse_special(entry: zipfile.ZipInfo) -> None:
    """Refuse links, devices and what else is neither a file nor a folder."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise wrong_file(
            f"{quoted(entry.filename)} in the zip is a link or another special file; expected "
            "plain files"
        )


def _check_name(path: str) -> None:
    name = PurePosixPath(path).name
    suffix = PurePosixPath(name.lower()).suffix
    if suffix in _PICKLES:
        raise wrong_file(
            f"{quoted(path)} could be pickle, which is never opened: save it as safetensors, or "
            "leave it out"
        )
    is_ours = name in (CONFIG_NAME, WEIGHTS_NAME, TASK_NAME)
    if not is_ours and suffix not in _IGNORED_SUFFIXES and name not in _IGNORED_NAMES:
        raise wrong_file(f"{quoted(path)} does not belong to an adapter; expected {_EXPECTED}")


def _read_json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> dict[str, Any]:
    if entry.file_size > MAX_JSON_BYTES:
        raise wrong_file(f"{name} is larger than {MAX_JSON_BYTES:,} bytes")
    content = b"".join(_chunks(archive, entry, name))
    try:
        found: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
    # Bytes that are no text are no DecodeError of msgspec's.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wrong_file(f"{name} is not valid JSON: {shortened(str(error), 200)}") from None
    return found


def _task_of(content: Mapping[str, Any]) -> str:
    """Return the task that `task.json` names, after checking what a model is made from."""
    task, outline = content.get("task"), content.get("outline")
    if not isinstance(task, str) or task not in TASKS or not isinstance(outline, dict):
        raise wrong_file(
            f'{TASK_NAME} must be {{"task": …, "outline": {{…}}}} as Tunesmith writes it, with one '
            f"of the tasks {', '.join(TASKS)}"
        )
    labels = outline.get("labels", [])
    is_list = isinstance(labels, list) and len(labels) <= MAX_CLASSES
    if not is_list or not all(_is_class(label) for label in labels):
        raise wrong_file(
            f"{TASK_NAME}: labels must be up to {MAX_CLASSES:,} names of classes, of up to "
            f"{MAX_CLASS_CHARACTERS:,} characters each"
        )
    if len(set(labels)) < len(labels):
        raise wrong_file(f"{TASK_NAME}: two labels are the same")
    return task


def _is_class(label: Any) -> bool:
    return isinstance(label, str) and len(label) <= MAX_CLASS_CHARACTERS


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """Yield a file's content; at its end zipfile compares it with its checksum."""
    num_bytes = 0
    with _damage_told_of(name), archive.open(entry) as content:
        while chunk := content.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            yield chunk
    if num_bytes != entry.file_size:
        raise wrong_file(f"{name} is damaged in the zip: it ends early")


def _skip(name: str, chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        continue


@contextmanager
def _damage_told_of(name: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise wrong_file(f"{name} is damaged in the zip: {error}") from None
