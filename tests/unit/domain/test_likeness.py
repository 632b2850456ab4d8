from typing import Any

import pytest

from app.domain.likeness import likeness, texts_of


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": n, "message": {"content": text}} for n, text in enumerate(texts)]
    return {"id": "chatcmpl-1", "model": "a", "choices": choices, **more}


def predicted(*predictions: Any) -> dict[str, Any]:
    return {"id": "pred-1", "predictions": list(predictions)}


def classes(*scores: float) -> list[dict[str, Any]]:
    return [{"label": f"label-{n}", "score": score} for n, score in enumerate(scores)]


CHAT = "/v1/chat/completions"
PREDICTIONS = "/v1/predictions"


def test_texts_are_compared_by_their_letters() -> None:
    same = likeness(CHAT, chat("Hello there"), chat("Hello there", id="chatcmpl-2"))
    assert (same.is_identical, same.similarity) == (True, 1.0)
    near = likeness(CHAT, chat("Hello there"), chat("Hello here"))
    far = likeness(CHAT, chat("Hello there"), chat("xyz"))
    assert not near.is_identical
    assert near.similarity is not None
    assert far.similarity is not None
    assert 0.9 < near.similarity < 1
    assert far.similarity < 0.2
    two = likeness(CHAT, chat("a", "b"), chat("a", "c"))
    assert (two.is_identical, two.similarity) == (False, 0.5)


def test_what_is_called_counts_as_text() -> None:
    call = {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    calling = {"choices": [{"index": 0, "message": {"content": None, "tool_calls": [call]}}]}
    assert texts_of(calling) == ['weather({"city": "Oslo"})']
    assert texts_of({"choices": [{"index": 0, "text": "x"}]}) == ["x"]
    parts = [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert texts_of({"output": [{"type": "message", "content": parts}]}) == ["ab"]


def test_very_long_texts_are_compared_in_no_time() -> None:
    assert likeness(CHAT, chat("ab" * 500_000), chat("ba" * 500_000)).is_identical is False


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        # A class, however sure.
        (classes(0.9, 0.1), classes(0.6, 0.4), 1.0),
        (classes(0.9, 0.1), classes(0.4, 0.6), 0.0),
        # Entities, by what they are and where.
        (
            [{"entity_group": "PER", "start": 0, "end": 4, "score": 0.9}],
            [{"entity_group": "PER", "start": 0, "end": 4, "score": 0.8}],
            1.0,
        ),
        (
            [{"entity_group": "PER", "start": 0, "end": 4, "score": 0.9}],
            [{"entity_group": "ORG", "start": 0, "end": 4, "score": 0.9}],
            0.0,
        ),
        ({"answer": "Oslo", "score": 0.9}, {"answer": "Oslo", "score": 0.2}, 1.0),
    ],
)
def test_predictions_are_compared_by_what_they_say(one: Any, other: Any, agreed: float) -> None:
    found = likeness(PREDICTIONS, predicted(one, one), predicted(other, other))
    assert (found.is_identical, found.similarity) == (False, agreed)
    half = likeness(PREDICTIONS, predicted(one, one), predicted(one, other))
    assert half.similarity == (1 + agreed) / 2


def test_numbers_agree_if_they_are_equal() -> None:
    one, other = [{"label": "score", "score": 1.5}], [{"label": "score", "score": 1.25}]
    assert likeness(PREDICTIONS, predicted(one), predicted(other)).similarity == 0
    assert likeness(PREDICTIONS, predicted(one), predicted(one)).similarity == 1


def test_vectors_have_no_likeness() -> None:
    one = {"object": "list", "model": "a", "data": [{"embedding": [0.6, 0.8]}]}
    found = likeness("/v1/embeddings", one, one | {"model": "b"})
    assert (found.is_identical, found.similarity) == (True, None)
