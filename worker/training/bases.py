"""What stays in memory between jobs: loading and encoding take longer than the first step."""

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import torch

from worker.training.manifest import BaseModelRef
from worker.training.records import EncodedDataset
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.trunk import Trunk

_DATASETS_KEPT = 8


class WarmBase:
    """A loaded base model, and the datasets that were last encoded with its tokenizer."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self._datasets: OrderedDict[Hashable, EncodedDataset] = OrderedDict()

    def dataset(self, key: Hashable, encode: Callable[[], EncodedDataset]) -> EncodedDataset:
        """Return the dataset of a key, encoding it if it is not in memory."""
        if key not in self._datasets:
            self._datasets[key] = encode()
        self._datasets.move_to_end(key)
        while len(self._datasets) > _DATASETS_KEPT:
            self._datasets.popitem(last=False)
        return self._datasets[key]


class WarmBases:
    """The base models that were used last.

    Args:
        profile: what they are loaded for.
        capacity: how many are kept; the one that was unused for longest goes first.
    """

    def __init__(self, profile: DeviceProfile, capacity: int = 1) -> None:
        self.profile = profile
        self._capacity = capacity
        self._bases: OrderedDict[tuple[str, str], WarmBase] = OrderedDict()

    def get(self, base: BaseModelRef) -> tuple[WarmBase, float]:
        """Return a base model and the seconds that loading it took: 0 if it was warm.

        Raises:
            InvalidInput: the directory holds no base model that can be trained.
        """
        key = (base.directory, base.revision)
        if key in self._bases:
            self._bases.move_to_end(key)
            return self._bases[key], 0.0
        while len(self._bases) >= self._capacity:
            self._bases.popitem(last=False)
        self.release_memory()
        started = time.perf_counter()
        self._bases[key] = WarmBase(load_trunk(Path(base.directory), self.profile))
        return self._bases[key], time.perf_counter() - started

    def forget(self) -> None:
        """Make room for a model that is not kept warm."""
        self._bases.clear()
        self.release_memory()

    def release_memory(self) -> None:
        """Give back what nothing refers to any more."""
        gc.collect()
        if self.profile.device == "cuda":
            torch.cuda.empty_cache()
