import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from app.base_models import BaseModel, ensure_installed, find_installed, load_catalogue
from app.base_models.catalogue import FurtherSource
from app.domain.errors import InvalidInput, Unavailable


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory that looks like a model, from far enough away."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "run_me.py").write_text("raise SystemExit")
    return directory


@pytest.fixture
def model(source: Path) -> BaseModel:
    return BaseModel(
        id="acme/tiny",
        source=f"dir:{source}",
        revision="1",
        sha256=None,
        name="acme/tiny",
        tasks=("text-generation",),
        context_length=128,
        learning_rate=1e-4,
        licence="mit",
    )


def test_a_model_is_installed_once_and_found_again(model: BaseModel, tmp_path: Path) -> None:
    assert find_installed(model, tmp_path / "models") is None
    installed = ensure_installed(model, tmp_path / "models")
    assert find_installed(model, tmp_path / "models") == installed
    assert (installed.id, installed.name, installed.context_length) == (
        "acme/tiny",
        "acme/tiny",
        128,
    )
    assert (installed.directory / "model.safetensors").read_bytes() == b"weights"


def test_code_that_comes_with_a_model_stays_behind(model: BaseModel, tmp_path: Path) -> None:
    installed = ensure_installed(model, tmp_path / "models")
    assert not list(installed.directory.glob("*.py"))


def test_another_revision_is_another_installation(model: BaseModel, tmp_path: Path) -> None:
    first = ensure_installed(model, tmp_path / "models")
    second = ensure_installed(replace(model, revision="2"), tmp_path / "models")
    assert first.revision != second.revision
    assert first.directory != second.directory
    assert find_installed(model, tmp_path / "models") == first


def test_another_further_source_or_converter_is_another_installation(
    model: BaseModel, source: Path, tmp_path: Path
) -> None:
    ensure_installed(model, tmp_path / "models")
    further = (FurtherSource(f"dir:{source}"),)
    assert find_installed(replace(model, further_sources=further), tmp_path / "models") is None
    assert find_installed(replace(model, convert="gguf"), tmp_path / "models") is None


def test_the_default_model_is_the_one_that_adapters_were_trained_on(
    models_dir: Path, base_model_dir: Path
) -> None:
    """Its revision is written into every adapter: a new way to count it would orphan them."""
    model = load_catalogue(Path("/none")).get("smollm2-135m-instruct")
    installed = find_installed(model, models_dir)
    assert installed is not None
    assert installed.revision.startswith("31869cb99da70fc2")


def test_files_of_several_sources_lie_together(
    model: BaseModel, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (source / "tokenizer.json").rename(other / "tokenizer.json")
    model = replace(model, further_sources=(FurtherSource(f"dir:{other}"),))
    directory = ensure_installed(model, tmp_path / "models").directory
    names = {"config.json", "model.safetensors", "tokenizer.json", "tunesmith.json"}
    assert {path.name for path in directory.iterdir()} == names


def test_a_file_that_two_sources_hold_is_refused_and_neither_is_touched(
    model: BaseModel, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    model = replace(model, further_sources=(FurtherSource(f"dir:{other}"),))
    with pytest.raises(InvalidInput, match=r"'model\.safetensors', as another"):
        ensure_installed(model, tmp_path / "models")
    assert (source / "model.safetensors").read_bytes() == b"weights"
    assert (other / "model.safetensors").read_bytes() == b"other weights"


def test_many_may_ask_at_once(model: BaseModel, tmp_path: Path) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = [pool.submit(ensure_installed, model, tmp_path / "models") for _ in range(8)]
    assert len({one.result().directory for one in asked}) == 1


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_without_a_model_is_refused_and_leaves_nothing(
    model: BaseModel, source: Path, tmp_path: Path, missing: str
) -> None:
    (source / missing).unlink()
    with pytest.raises(InvalidInput, match=r"config\.json.*safetensors"):
        ensure_installed(model, tmp_path / "models")
    assert [one.name for one in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_model_that_wants_to_run_code_is_refused(
    model: BaseModel, source: Path, tmp_path: Path
) -> None:
    (source / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "run_me.Model"}}))
    with pytest.raises(InvalidInput, match="auto_map"):
        ensure_installed(model, tmp_path / "models")


def test_a_source_that_is_away_says_so(model: BaseModel, tmp_path: Path) -> None:
    away = replace(model, source="dir:/no/such/directory")
    with pytest.raises(Unavailable, match="no such directory"):
        ensure_installed(away, tmp_path / "models")


@pytest.mark.parametrize(
    ("source", "sha256", "told"),
    [
        ("dir:models/tiny", None, "absolute path"),
        ("hf:tiny", None, "hf:<owner>/<repository>"),
        ("wheel:tiny==1", "0" * 64, "wheel:<package>==<version>#<path inside>"),
        ("wheel:tiny==1#a.json,,b.json", "0" * 64, "wheel:<package>==<version>#<path inside>"),
        ("wheel:--index-url=x#model.gguf", "0" * 64, "wheel:<package>"),
        ("wheel:tiny==1#model.gguf", None, "sha256"),
    ],
)
def test_a_source_that_cannot_be_read_is_explained(
    model: BaseModel, tmp_path: Path, source: str, sha256: str | None, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        ensure_installed(replace(model, source=source, sha256=sha256), tmp_path / "models")


def test_the_default_model_is_complete(base_model_dir: Path) -> None:
    names = {path.name for path in base_model_dir.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith(".gguf")]
