"""Storage of content: datasets, checkpoints, adapters. Content is written first, its row last."""

from app.storage.port import Storage, StoredContent, open_storage

__all__ = ["Storage", "StoredContent", "open_storage"]
