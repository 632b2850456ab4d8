"""Base models: the operator's catalogue, and the sources that bring their weights here."""

from app.base_models.catalogue import BaseModel, Catalogue, load_catalogue
from app.base_models.described import described
from app.base_models.install import InstalledBaseModel, ensure_installed, find_installed

__all__ = [
    "BaseModel",
    "Catalogue",
    "InstalledBaseModel",
    "described",
    "ensure_installed",
    "find_installed",
    "load_catalogue",
]
