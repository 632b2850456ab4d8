"""Fixtures of the tests of converters: the models of the default catalogue, installed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.base_models import ensure_installed
from app.base_models.catalogue import DEFAULT_CATALOGUE, parse_catalogue


@pytest.fixture(scope="session")
def directory_of(models_dir: Path) -> Callable[[str], Path]:
    """Return a function that gives the directory of a model, fetching it at its first use."""
    catalogue = parse_catalogue(DEFAULT_CATALOGUE.read_text(), "the default catalogue")
    return lambda model_id: ensure_installed(catalogue.get(model_id), models_dir).directory
