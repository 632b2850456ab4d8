import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.base_models import BaseModel, load_catalogue
from app.base_models.catalogue import (
    DEFAULT_CATALOGUE,
    DEFAULT_LEARNING_RATE,
    FurtherSource,
    add_to_catalogue,
    parse_catalogue,
)
from app.domain.errors import DomainError, InvalidInput, NotFound

DEFAULT_MODEL = "smollm2-135m-instruct"

MODEL = BaseModel(
    id="acme/tiny",
    source="hf:acme/tiny",
    revision="abc123",
    sha256=None,
    name="acme/tiny",
    tasks=("text-generation",),
    context_length=2_048,
    learning_rate=3e-4,
    licence='apache-2.0 "with quotes" and \\ and \n',
)

ENTRY = {
    "id": '"tiny"',
    "source": '"dir:/models/tiny"',
    "tasks": '["text-generation"]',
    "context_length": "2048",
    "licence": '"mit"',
}


def entry(**overrides: str | None) -> str:
    fields = ENTRY | overrides
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    return "[[models]]\n" + "\n".join(lines) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "operator" / "models.toml"


def test_without_a_file_there_is_the_default_model(path: Path) -> None:
    model = load_catalogue(path).get(DEFAULT_MODEL)
    assert model.source.startswith("wheel:")
    assert model.sha256 is not None
    assert model.licence == "apache-2.0"


def test_an_entry_needs_only_what_has_no_default() -> None:
    model = parse_catalogue(entry(), "here").get("tiny")
    assert model.name == "tiny"
    assert model.learning_rate == DEFAULT_LEARNING_RATE
    assert model.tasks == ("text-generation",)


@pytest.mark.parametrize("field", ENTRY)
def test_a_missing_field_is_named_with_its_entry(field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"here: models\[2\]: .*missing.*'{field}'"):
        parse_catalogue(entry() + entry(**{field: None}), "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "3"),
        ("source", "[]"),
        ("tasks", '"text-generation"'),
        ("tasks", "[1]"),
        ("context_length", '"2048"'),
        ("context_length", "true"),
        ("context_length", "0"),
        ("context_length", "-5"),
        ("licence", "false"),
        ("revision", "7"),
        ("sha256", "7"),
        ("name", "[]"),
        ("learning_rate", '"fast"'),
        ("learning_rate", "0.0"),
        ("learning_rate", "nan"),
        ("convert", "3"),
        ("further_sources", '"hf:a/b"'),
        ("further_sources", "[{}]"),
        ("further_sources", '[{ source = "hf:a/b", sha256 = 7 }]'),
        ("further_sources", '[{ source = "hf:a/b", mood = "good" }]'),
        ("mood", '"good"'),
    ],
)
def test_a_bad_field_is_named_with_its_entry(field: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=rf"models\[1\]: .*'{field}"):
        parse_catalogue(entry(**{field: value}), "here")


@pytest.mark.parametrize(
    "model_id", ["", "ft:x", "../x", "a/../b", "/etc", "a b", "a:b", "é", "x" * 129]
)
def test_an_id_that_could_be_mistaken_is_refused(model_id: str) -> None:
    with pytest.raises(InvalidInput, match="id"):
        parse_catalogue(entry(id=f"'{model_id}'"), "here")


def test_an_id_may_be_there_once() -> None:
    with pytest.raises(InvalidInput, match=r"models\[2\].*'tiny'.*already"):
        parse_catalogue(entry() * 2, "here")


def test_an_unknown_source_is_told_with_the_known_ones() -> None:
    with pytest.raises(DomainError, match=r"'ftp'.*dir, hf, wheel"):
        parse_catalogue(entry(source='"ftp://models/tiny"'), "here")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("further_sources", '[{ source = "ftp://models/tiny" }]', r"'ftp'.*dir, hf, wheel"),
        ("convert", '"onnx"', r"'onnx'.*gguf"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(field: str, value: str, told: str) -> None:
    with pytest.raises(DomainError, match=told):
        parse_catalogue(entry(**{field: value}), "here")


def test_a_model_may_come_from_several_places_and_be_converted() -> None:
    sources = '[{ source = "wheel:b==1#b/two.bin", sha256 = "00" }, { source = "hf:a/b" }]'
    text = entry(further_sources=sources, convert='"ctranslate2_whisper"')
    model = parse_catalogue(text, "here").get("tiny")
    assert model.convert == "ctranslate2_whisper"
    assert model.further_sources == (
        FurtherSource("wheel:b==1#b/two.bin", "00"),
        FurtherSource("hf:a/b"),
    )


def test_every_source_of_the_default_models_is_pinned() -> None:
    catalogue = parse_catalogue(DEFAULT_CATALOGUE.read_text(), "the default catalogue")
    for model in catalogue.models.values():
        for one in (FurtherSource(model.source, model.sha256), *model.further_sources):
            assert re.fullmatch(r"wheel:[\w-]+==[\d.]+#.+", one.source)
            assert re.fullmatch(r"[0-9a-f]{64}", one.sha256 or "")


@pytest.mark.parametrize("text", ["not toml", "models = 3", "models = [3]", "models = ['a']"])
def test_what_is_no_catalogue_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(InvalidInput, match="here"):
        parse_catalogue(text, "here")


def test_an_unknown_model_is_not_found(path: Path) -> None:
    with pytest.raises(NotFound, match="'gpt-4'") as missed:
        load_catalogue(path).get("gpt-4")
    assert (missed.value.param, missed.value.code) == ("model", "model_not_found")


def test_what_is_added_is_read_again(path: Path) -> None:
    default = load_catalogue(path)
    add_to_catalogue(path, MODEL)
    catalogue = load_catalogue(path)
    assert list(catalogue.models) == [*default.models, MODEL.id]
    assert catalogue.get(MODEL.id) == MODEL


def test_what_is_added_keeps_its_further_sources(path: Path) -> None:
    further = (FurtherSource("wheel:b==1#b/two.bin", "00"), FurtherSource("hf:a/b"))
    model = replace(MODEL, further_sources=further, convert="gguf")
    add_to_catalogue(path, model)
    add_to_catalogue(path, replace(MODEL, id="other"))
    assert load_catalogue(path).get(MODEL.id) == model


def test_a_model_added_while_the_service_runs_is_seen(path: Path) -> None:
    add_to_catalogue(path, MODEL)
    assert "other" not in load_catalogue(path).models
    add_to_catalogue(path, replace(MODEL, id="other"))
    assert load_catalogue(path).get("other").source == MODEL.source


def test_adding_keeps_what_the_operator_wrote(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("# mine\n" + entry())
    add_to_catalogue(path, MODEL)
    assert path.read_text().startswith("# mine\n" + entry())
    assert list(load_catalogue(path).models) == ["tiny", MODEL.id]


@pytest.mark.parametrize(
    "changes",
    [{"id": DEFAULT_MODEL}, {"id": "../x"}, {"source": "ftp:x"}],
    ids=["taken", "bad_id", "bad_source"],
)
def test_a_refused_addition_leaves_the_file_as_it_was(path: Path, changes: dict[str, Any]) -> None:
    add_to_catalogue(path, MODEL)
    before = path.read_text()
    with pytest.raises(DomainError):
        add_to_catalogue(path, replace(MODEL, **({"id": "new"} | changes)))
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]
