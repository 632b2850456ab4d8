"""Which tensors an adapter of each kind is made of, by `peft`'s names of them."""

import re
from collections.abc import Mapping
from typing import Any

from app.domain.adapter_config import CONFIG_NAME, saved_modules_of
from app.domain.datasets.faults import quoted, wrong_file
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.safetensors_header import TensorEntry

_MODEL = "base_model.model."
_TUNER = "base_model."
_PROMPT = "prompt_embeddings"
_VERA = ("base_model.vera_A", "base_model.vera_B")
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

_LORA = frozenset({"lora_A.weight", "lora_B.weight"})

# What the update of one layer is made of: each kind has it in one or more forms.
_FORMS: Mapping[str, tuple[frozenset[str], ...]] = {
    "lora": (_LORA,),
    "adalora": (frozenset({"lora_A", "lora_B", "lora_E"}),),
    "ia3": (frozenset({"ia3_l"}),),
    "loha": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
    "lokr": tuple(
        frozenset({*first, *second})
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    "oft": (frozenset({"oft_R.weight"}),),
    "vera": (frozenset({"vera_lambda_b", "vera_lambda_d"}),),
}
_DORA = (_LORA | {"lora_magnitude_vector"},)


def check_tensors(
    tensors: Mapping[str, TensorEntry], kind: str, config: Mapping[str, Any]
) -> frozenset[str]:
    """Check that an adapter has what its kind is made of, and nothing else.

    Args:
        tensors: by their names in the file.
        config: of the adapter.

    Returns:
        The last names of the layers that are adapted; none if it is a prompt.

    Raises:
        InvalidFile: a tensor is missing, or is none of that kind; it is named.
    """
    forms = _DORA if kind == "lora" and config.get("use_dora") else _FORMS.get(kind, ())
    parts = frozenset[str]().union(*forms)
    saved = saved_modules_of(config)
    found: dict[str, set[str]] = {}
    for name in tensors:
        layer = _layer_of(name, parts)
        if layer is not None:
            found.setdefault(layer[0], set()).add(layer[1])
        elif not (_is_of_kind(name, kind) or _is_saved_whole(name, saved)):
            raise wrong_file(f"the tensor {quoted(name)} is none of a {kind} adapter's")
    for path, has in found.items():
        if has not in forms:
            raise wrong_file(
                f"the layer {quoted(path)} has only {', '.join(sorted(has))}; a {kind} adapter has "
                + " or ".join(" and ".join(sorted(form)) for form in forms)
            )
    _check_whole(tensors, kind, found)
    if kind == "lora":
        _check_rank(tensors, found, config.get("r"))
    if kind == "adalora":
        _check_ranks_kept(tensors, found, config)
    return frozenset(path.rpartition(".")[2] for path in found)


def _layer_of(name: str, parts: frozenset[str]) -> tuple[str, str] | None:
    """Return the path of the layer that a tensor adapts, and which part of the update it is."""
    if not name.startswith(_MODEL):
        return None
    for part in parts:
        path = name.removeprefix(_MODEL).removesuffix(f".{part}")
        if name == f"{_MODEL}{path}.{part}" and _PATH.fullmatch(path):
            return path, part
    return None


def _is_of_kind(name: str, kind: str) -> bool:
    if PEFT_KINDS[kind].is_prompt:
        return name == _PROMPT
    return kind == "vera" and name in _VERA


def _is_saved_whole(name: str, saved: frozenset[str]) -> bool:
    if not name.startswith(_TUNER) or not _PATH.fullmatch(name):
        return False
    return any(f".{module}." in name for module in saved)


def _check_whole(
    tensors: Mapping[str, TensorEntry], kind: str, found: Mapping[str, set[str]]
) -> None:
    is_prompt = PEFT_KINDS[kind].is_prompt
    needed = (_PROMPT,) if is_prompt else _VERA if kind == "vera" else ()
    for name in needed:
        if name not in tensors:
            raise wrong_file(f"the tensor {name!r} is missing, which a {kind} adapter has")
    if not found and not is_prompt:
        raise wrong_file(
            f"the weights adapt no layer; expected tensors such as "
            f"'{_MODEL}….{sorted(_FORMS[kind][0])[0]}'"
        )


def _check_rank(
    tensors: Mapping[str, TensorEntry], found: Mapping[str, set[str]], rank: Any
) -> None:
    for path in found:
        a = tensors[f"{_MODEL}{path}.lora_A.weight"].shape
        b = tensors[f"{_MODEL}{path}.lora_B.weight"].shape
        if len(a) < 2 or len(b) != len(a) or a[0] != rank or b[1] != rank:
            raise wrong_file(
                f"the weights of {quoted(path)} do not have the rank r of {CONFIG_NAME}"
            )


def _check_ranks_kept(
    tensors: Mapping[str, TensorEntry], found: Mapping[str, set[str]], config: Mapping[str, Any]
) -> None:
    """Check AdaLoRA's list of the ranks that are left of each layer."""
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise wrong_file(f"{CONFIG_NAME}: rank_pattern must be an object of lists")
    all_ranks = config.get("init_r")
    kept: dict[str, int] = {}
    for name, ranks in pattern.items():
        path = name.removesuffix(".default").removesuffix(".lora_E")
        is_list = isinstance(ranks, list) and all(isinstance(rank, bool) for rank in ranks)
        if path not in found or not is_list or len(ranks) != all_ranks:
            raise wrong_file(
                f"{CONFIG_NAME}: rank_pattern of {quoted(name)} must tell of each of a "
                "layer's 'init_r' ranks whether it was kept"
            )
        kept[path] = sum(ranks)
    for path in found:
        rank = kept.get(path, all_ranks)
        a, b, e = (
            tensors[f"{_MODEL}{path}.{part}"].shape for part in ("lora_A", "lora_B", "lora_E")
        )
        if a[:1] != (rank,) or b[1:2] != (rank,) or e != (rank, 1):
            raise wrong_file(
                f"the weights of {quoted(path)} do not have the ranks of {CONFIG_NAME}"
            )
