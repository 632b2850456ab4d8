"""Which kind of record a file holds, known from its first; and what newcomers write instead."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from app.domain.datasets.faults import WrongRecord, quoted_list
from app.domain.datasets.kinds import RECORD_KINDS, RecordKind

# Shapes of other tools, by keys that no kind here has.
_OTHER_SHAPES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"instruction", "output"}), "write 'instruction' and 'input' as 'prompt', and "
     "'output' as 'completion', or all as 'messages'"),
    (frozenset({"conversations"}), "write 'conversations' as 'messages', 'from' as 'role' and "
     "'value' as 'content'"),
    (frozenset({"chosen", "rejected"}), "write 'chosen' as 'preferred_output', 'rejected' as "
     "'non_preferred_output' and the prompt as 'input'"),
    (frozenset({"source", "target"}), "write 'source' as 'prompt' and 'target' as 'completion'"),
    (frozenset({"question", "answer"}), "write 'question' as 'prompt' and 'answer' as "
     "'completion', or both as 'messages'"),
    (frozenset({"sentence", "label"}), "write 'sentence' as 'text'"),
    (frozenset({"premise", "hypothesis"}), "write 'premise' as 'text' and 'hypothesis' as "
     "'text_pair'"),
    (frozenset({"query", "positive"}), "write 'query' as 'anchor'"),
)  # fmt: skip


def kind_of(record: Mapping[str, Any]) -> RecordKind:
    """Return the kind that a record is meant to be. Raises: WrongRecord, naming the kinds."""
    kind = find_kind(record)
    if kind is None:
        found = quoted_list(record) or "no keys"
        raise WrongRecord(f"{found}: {explain_keys(record)}")
    return kind


def find_kind(record: Mapping[str, Any]) -> RecordKind | None:
    return next((kind for kind in RECORD_KINDS if kind.is_meant(record)), None)


def explain_keys(keys: Collection[str]) -> str:
    """Say what to write instead of keys, or columns, that no kind of record has."""
    for shape, advice in _OTHER_SHAPES:
        if shape <= set(keys):
            return advice
    known = "; ".join(", ".join(json.loads(kind.example)) for kind in RECORD_KINDS)
    return f"no kind of record has these keys; expected one of: {known}"
