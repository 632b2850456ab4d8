from pathlib import Path

import pytest

from app.domain.errors import InvalidInput
from app.settings import load_settings


def test_a_laptop_needs_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({})
    data_dir = tmp_path / ".tunesmith"
    assert settings.data_dir == data_dir
    assert settings.database_url == f"sqlite:///{data_dir}/tunesmith.db"
    assert settings.broker_url == f"filesystem://{data_dir}/broker"
    assert settings.storage_url == f"file://{data_dir}/storage"
    assert settings.models_dir == data_dir / "models"
    assert settings.engine_url == "http://127.0.0.1:8001"
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_urls_replace_the_embedded_parts() -> None:
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://db/tunesmith",
            "BROKER_URL": "redis://broker:6379/0",
            "ENGINE_URL": "http://vllm:8000/",
            "ENGINE_KIND": "vllm",
        }
    )
    assert settings.database_url == "postgresql://db/tunesmith"
    assert settings.broker_url == "redis://broker:6379/0"
    assert settings.engine_url == "http://vllm:8000"
    assert settings.engine_kind == "vllm"


def test_the_data_directory_moves_everything_that_is_kept(tmp_path: Path) -> None:
    settings = load_settings({"TUNESMITH_DATA_DIR": str(tmp_path)})
    for place in (settings.database_url, settings.broker_url, settings.storage_url):
        assert str(tmp_path) in place
    assert settings.models_dir.is_relative_to(tmp_path)
    assert settings.catalogue_path.is_relative_to(tmp_path)


def test_an_empty_variable_is_as_none() -> None:
    assert load_settings({"PORT": "", "ENGINE_API_KEY": ""}) == load_settings({})


@pytest.mark.parametrize("name", ["API_PORT", "LEASE_TTL_SECONDS", "MAX_UPLOAD_BYTES"])
@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_a_number_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        load_settings({name: value})


@pytest.mark.parametrize("name", ["API_PORT", "ENGINE_PORT"])
@pytest.mark.parametrize("value", ["80.5", "65536", "http"])
def test_a_port_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        load_settings({name: value})


def test_the_key_of_the_engine_is_not_shown() -> None:
    assert "s3cret" not in repr(load_settings({"ENGINE_API_KEY": "s3cret"}))
