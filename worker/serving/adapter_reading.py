"""From an adapter's directory, or those of several, to weights that can be served."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import InvalidInput, NotFound
from worker.serving.adapters import AdapterFiles, check_fits, inspect_adapter, purpose_of
from worker.serving.base import ServedBase
from worker.serving.digests import Digests
from worker.serving.served_adapters import MixedAdapter, read_mixed
from worker.serving.served_bases import ServedBases
from worker.serving.served_model import fingerprint
from worker.trunk.lora import LoraAdapter
from worker.trunk.lora_mean import weighted_mean


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where an adapter is read from.

    Attributes:
        directory: of its files; of the first member's, if it is a mean.
        members: directories and weights of the adapters whose mean it is, if it is one.
    """

    directory: Path
    members: tuple[tuple[Path, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ReadAdapter:
    """An adapter in memory, whose files are what they claim to be and fit their base model.

    Attributes:
        weights: None for one that needs weights of its own.
    """

    base: ServedBase
    fingerprint: str
    chat_template: str | None
    weights: MixedAdapter | None


async def read_adapter(source: AdapterSource, bases: ServedBases, digests: Digests) -> ReadAdapter:
    """Read an adapter, and load its base model unless it is loaded.

    Raises:
        InvalidInput: it is damaged, or was trained for something else; the message says which.
    """
    if source.members:
        return await _read_mean(source.members, bases, digests)
    files, base, weights = await _read(source.directory, bases, digests)
    print_ = fingerprint(base.numbers, base.files.revision, files.digest)
    return ReadAdapter(base, print_, files.chat_template, weights)


async def _read_mean(
    members: Sequence[tuple[Path, float]], bases: ServedBases, digests: Digests
) -> ReadAdapter:
    first, base, _ = await _read(members[0][0], bases, digests)
    adapters, parts = list[LoraAdapter](), list[str]()
    for directory, weight in members:
        files, its_base, weights = await _read(directory, bases, digests)
        is_alike = its_base is base and files.chat_template == first.chat_template
        if not is_alike or not isinstance(weights, LoraAdapter):
            raise InvalidInput(
                "a mean is taken of LoRA adapters of one base model and chat template",
                param="lora_members",
            )
        adapters.append(weights)
        parts.append(f"{files.digest} {weight}")
    mean = await asyncio.to_thread(weighted_mean, adapters, [one for _, one in members])
    print_ = fingerprint(base.numbers, base.files.revision, *parts)
    return ReadAdapter(base, print_, first.chat_template, mean)


async def _read(
    directory: Path, bases: ServedBases, digests: Digests
) -> tuple[AdapterFiles, ServedBase, MixedAdapter | None]:
    """Return an adapter's files, checked, the base model that they fit, and the weights."""
    _, told = await asyncio.to_thread(purpose_of, directory)
    loaded = bases.find(told) if told is not None else None
    if loaded is not None:
        # Most of the time goes into digests, and most of the rest into the weights: both at once.
        checking = asyncio.create_task(_checked(directory, bases, digests))
        reading = asyncio.to_thread(read_mixed, directory, loaded.base.input_width)
        checked, weights = await asyncio.gather(checking, reading, return_exceptions=True)
        if isinstance(checked, BaseException):
            raise checked
        if isinstance(weights, BaseException):
            raise weights
        return *checked, weights
    files, base = await _checked(directory, bases, digests)
    return files, base, await asyncio.to_thread(read_mixed, directory, base.input_width)


async def _checked(
    directory: Path, bases: ServedBases, digests: Digests
) -> tuple[AdapterFiles, ServedBase]:
    files = await asyncio.to_thread(inspect_adapter, directory, digests.sha256)
    try:
        base = (await bases.load(files.base_name)).base
    except NotFound:
        raise InvalidInput(
            f"the adapter was trained on {files.base_name!r}, which is not served here",
            param="lora_path",
        ) from None
    await asyncio.to_thread(check_fits, files, base.files, digests.sha256)
    return files, base
