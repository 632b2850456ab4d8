"""Reading a base model into memory, in the format that the engine was told to compute in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_half, use_int8
from worker.trunk.trunk import Trunk

Tune = Callable[[Trunk], Trunk]


class LoadTrunk(Protocol):
    """Reads a base model into memory."""

    def __call__(self, directory: Path, tune: Tune | None = None) -> Trunk:
        """Return what is to be computed with.

        Args:
            tune: makes another model of the one that was read, before its weights are copied.
        """


def trunk_loader(weights: str, profile: DeviceProfile) -> LoadTrunk:
    """Return what reads base models.

    Args:
        weights: see `EngineSettings`.
        profile: what they compute on.
    """

    def load(directory: Path, tune: Tune | None = None) -> Trunk:
        if weights != "int8":
            trunk = read(directory, profile, tune)
            use_half(trunk)
            return trunk
        # Rounded from what the weights are in float32, which is also what adapters then compute in.
        is_cpu = profile.device == "cpu"
        exact = replace(profile, dtype_name="float32") if is_cpu else profile
        trunk = read(directory, exact, tune)
        if use_int8(trunk) or trunk.dtype is profile.dtype:
            return trunk
        return read(directory, profile, tune)

    def read(directory: Path, chosen: DeviceProfile, tune: Tune | None) -> Trunk:
        trunk = load_trunk(directory, chosen)
        return trunk if tune is None else tune(trunk)

    return load
