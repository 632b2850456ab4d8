"""Classes that records are labelled with, checked before a job takes a worker's time."""

from collections.abc import Iterable, Mapping
from typing import Any

from app.domain.datasets import LabelledImageRecord, LabelledTextRecord, Record
from app.domain.errors import InvalidFile, InvalidInput

_MAX_TOLD = 20


def class_name(label: Any) -> str:
    """Return the name of a class as a string: JSON's words for true and false."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def check_classes(records: Iterable[tuple[int, Record]], weights: Any) -> None:
    """Refuse a training file without classes to tell apart, and weights of classes it has not.

    Records whose labels are no classes pass, as do those of entities, whose classes are made of
    tags. Where no class is weighed by name, only as many records are read as it takes.

    Args:
        weights: `tunesmith.training.class_weights`.

    Raises:
        InvalidInput: naming the field.
    """
    weighed = set(weights) if isinstance(weights, Mapping) else set()
    names: set[str] = set()
    enough = 2
    for _, record in records:
        if not isinstance(record, LabelledTextRecord | LabelledImageRecord):
            return
        if isinstance(record.label, float):
            return
        if record.label is not None:
            names.add(class_name(record.label))
        elif isinstance(record, LabelledTextRecord):
            enough = 1
            names.update(record.labels or ())
        if len(names) >= enough and weighed <= names:
            return
    if len(names) < enough:
        raise InvalidFile(_too_few(names), param="training_file")
    raise InvalidInput(
        f"class_weights names {', '.join(sorted(weighed - names)[:_MAX_TOLD])}; the classes of the "
        f"training file are {', '.join(sorted(names)[:_MAX_TOLD])}",
        param="tunesmith.training.class_weights",
    )


def _too_few(names: set[str]) -> str:
    if not names:
        return "no record has a label: at least one class is to be learnt"
    return f"all records have the label {', '.join(names)!r}: at least two are to be told apart"
