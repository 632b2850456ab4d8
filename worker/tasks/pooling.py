"""How the vectors of a text's tokens become one, as sentence-transformers' files of a model say.

Those of https://sbert.net are read, not its code: `modules.json` lists what follows the encoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from app.domain.errors import InvalidInput

_MODULES_NAME = "modules.json"
_POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceForm:
    """What a model makes of a text.

    Attributes:
        pooling: name in `POOLINGS`.
        normalize: whether vectors are brought to the length 1.
        max_tokens: more of a text is cut off; None: as much as the model takes.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int | None = None


def sentence_form(directory: Path) -> SentenceForm:
    """Return what a base model was made for; the mean, normalized, where it does not say.

    Raises:
        InvalidInput: what it says cannot be read, or not be done here.
    """
    if not (directory / _MODULES_NAME).is_file():
        return SentenceForm()
    modules = _read(directory / _MODULES_NAME, list[dict[str, Any]])
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules}
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise InvalidInput(
            f"the base model's {_MODULES_NAME} has a module {unknown[0]}, which is not known here"
        )
    pooling = "mean"
    if "Pooling" in kinds:
        # Taken for a name, not for a path: it must not lead out of the model.
        folder = Path(str(kinds["Pooling"].get("path"))).name
        pooling = _pooling(_read(directory / folder / "config.json", dict[str, Any]))
    settings = directory / "sentence_bert_config.json"
    longest = _read(settings, dict[str, Any]).get("max_seq_length") if settings.is_file() else None
    return SentenceForm(pooling, "Normalize" in kinds, longest)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(dim=1)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.sum(dim=1) - 1]


# Each takes hidden states [texts, tokens, width] float32 and a mask [texts, tokens] int64, which is
# 0 for the padding at the end, and returns [texts, width].
POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "max": _max,
    "lasttoken": _last,
}


def _pooling(config: Mapping[str, Any]) -> str:
    """Return the pooling of a `Pooling` module's config. Raises: InvalidInput."""
    named = config.get("pooling_mode")
    asked = [
        _POOLING_KEYS.get(key, key)
        for key, is_on in config.items()
        if key.startswith("pooling_mode_") and is_on is True
    ]
    found = [named] if isinstance(named, str) else asked
    if len(found) != 1 or found[0] not in POOLINGS:
        raise InvalidInput(
            f"the base model pools by {' and '.join(found) or 'nothing'}; here it can be one of "
            f"{', '.join(POOLINGS)}"
        )
    return found[0]


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"the base model's {path.name} cannot be read: {error}") from error
