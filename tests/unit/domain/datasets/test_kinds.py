import json
from typing import Any

import pytest

from app.domain.datasets import RECORD_KINDS, RecordKind, ReinforcementRecord
from tests.unit.domain.datasets.samples import (
    PNG,
    USER,
    WAV,
    archive,
    data_url,
    lines,
    numbered,
    refusal_of,
    summary_of,
)

MEDIA = {"image": data_url(PNG), "audio": data_url(WAV, "audio/wav")}


def example_of(kind: RecordKind) -> Any:
    return {key: MEDIA.get(key, value) for key, value in json.loads(kind.example).items()}


@pytest.mark.parametrize("kind", RECORD_KINDS, ids=lambda kind: kind.name)
def test_an_example_is_a_record_of_its_kind(kind: RecordKind) -> None:
    summary = summary_of(lines(example_of(kind), example_of(kind)))
    assert (summary.record_kind, summary.record_count) == (kind.name, 2)


@pytest.mark.parametrize("kind", RECORD_KINDS, ids=lambda kind: kind.name)
def test_an_example_with_another_key_is_refused_by_that_key(kind: RecordKind) -> None:
    content = lines(example_of(kind) | {"mood": 1})
    if kind.name == "reinforcement":
        (record,) = (record for _, record in numbered(content))
        assert isinstance(record, ReinforcementRecord)
        assert record.item == {"reference_answer": "…", "mood": 1}
        return
    assert "unknown key 'mood'" in refusal_of(content).message


@pytest.mark.parametrize("kind", RECORD_KINDS, ids=lambda kind: kind.name)
def test_a_record_of_another_kind_is_told_from_a_wrong_one(kind: RecordKind) -> None:
    other = RECORD_KINDS[0] if kind.name != "chat" else RECORD_KINDS[2]
    message = refusal_of(lines(example_of(kind), example_of(other))).message
    assert message.startswith(f"line 2: a record of kind {other.name} (")
    assert f"in a file of kind {kind.name}" in message


def test_kinds_have_names_of_their_own() -> None:
    assert len({kind.name for kind in RECORD_KINDS}) == len(RECORD_KINDS) == 14


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "'output' as 'completion'"),
        ({"conversations": []}, "'from' as 'role'"),
        ({"prompt_": "", "chosen": "", "rejected": ""}, "'chosen' as 'preferred_output'"),
        ({"source": "", "target": ""}, "'source' as 'prompt'"),
        ({"question": "", "answer": ""}, "'answer' as 'completion'"),
        ({"sentence": "", "label": 1}, "'sentence' as 'text'"),
        ({"premise": "", "hypothesis": "", "label": 1}, "'text_pair'"),
    ],
)
def test_shapes_of_other_tools_are_translated(record: Any, told: str) -> None:
    assert told in refusal_of(lines(record)).message


def test_a_chat_that_ends_with_the_user_is_for_reinforcement_if_there_is_more() -> None:
    graded = {"messages": [USER], "reference_answer": "42"}
    assert summary_of(lines(graded)).record_kind == "reinforcement"
    assert "for reinforcement" in refusal_of(lines({"messages": [USER]})).message


def test_file_name_names_an_image_or_a_recording() -> None:
    image = {"metadata.jsonl": lines({"file_name": "a.png", "label": "x"}), "a.png": PNG}
    assert summary_of(archive(image)).record_kind == "labelled_image"
    audio = {"metadata.jsonl": lines({"file_name": "a.wav", "text": "x"}), "a.wav": WAV}
    assert summary_of(archive(audio)).record_kind == "transcribed_audio"
