"""The catalogue with what the models that are installed here tell of themselves."""

from dataclasses import replace
from pathlib import Path

from app.base_models.architecture import read_architecture
from app.base_models.catalogue import BaseModel, Catalogue
from app.base_models.install import find_installed


def described(catalogue: Catalogue, models_dir: Path) -> Catalogue:
    """Return the catalogue with the architectures of the models that this machine has."""
    return Catalogue({name: _described(one, models_dir) for name, one in catalogue.models.items()})


def _described(model: BaseModel, models_dir: Path) -> BaseModel:
    installed = find_installed(model, models_dir)
    if installed is None:
        return model
    return replace(model, architecture=read_architecture(installed.directory))
