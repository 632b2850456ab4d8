"""Text released piece by piece: whole characters, and nothing of a stop string."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from worker.generation.sampling import SampledToken
from worker.generation.stopping import ShownText, TextStream
from worker.generation.vocabulary import Vocabulary

TEXTS = (
    "plain words, 12.5 %",
    "Grüße, naïve façade",
    "日本語のテキスト",
    "👩\u200d👩\u200d👧 family 🎉🎉",
    "tabs\tand\r\nlines\n\n  spaces",
    "\u0000\u0007 control, \ufffd replacement",
)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    encoded: list[int] = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    return encoded


def shown(
    vocabulary: Vocabulary, token_ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[ShownText], bool]:
    """Return the pieces up to a stop string, and whether there was one."""
    stream = TextStream(vocabulary, stop)
    pieces = []
    for token_id in token_ids:
        pieces.append(stream.push(SampledToken(token_id)))
        if pieces[-1].is_stopped:
            return pieces, True
    pieces.append(stream.finish())
    return pieces, pieces[-1].is_stopped


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_make_up_the_text(vocabulary: Vocabulary, text: str) -> None:
    token_ids = encode(vocabulary, text)
    assert b"".join(map(vocabulary.bytes_of, token_ids)).decode() == text


def test_every_token_decodes_as_the_tokenizer_does(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary.tokenizer
    for token_id in range(0, len(tokenizer), 7):
        text = vocabulary.bytes_of(token_id).decode(errors="replace")
        assert text == tokenizer.decode([token_id], clean_up_tokenization_spaces=False)


def test_an_id_beyond_the_tokenizer_has_no_bytes(vocabulary: Vocabulary) -> None:
    assert vocabulary.bytes_of(10_000_000) == b""


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_has_part_of_a_character(vocabulary: Vocabulary, text: str) -> None:
    token_ids = encode(vocabulary, text)
    pieces, _ = shown(vocabulary, token_ids)
    assert "".join(piece.text for piece in pieces) == text
    assert [t.token_id for piece in pieces for t in piece.tokens] == token_ids
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece.text for piece in pieces)


def test_an_answer_cut_within_a_character_ends_with_a_replacement(vocabulary: Vocabulary) -> None:
    token_ids = encode(vocabulary, "🎉")
    assert len(token_ids) > 1
    pieces, _ = shown(vocabulary, token_ids[:-1])
    assert "".join(piece.text for piece in pieces) == "\ufffd"


def test_special_tokens_are_not_text(vocabulary: Vocabulary) -> None:
    end = next(iter(vocabulary.end_token_ids))
    pieces, _ = shown(vocabulary, [*encode(vocabulary, "a"), end, *encode(vocabulary, "b")])
    assert "".join(piece.text for piece in pieces) == "ab"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", (" two",), "one"),
        ("one two three", ("wo thr",), "one t"),
        ("one two three", ("o",), ""),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), "one two three"),
        ("one two thr", ("three",), "one two thr"),
        ("aaab", ("aab",), "a"),
        ("naïve 🎉 party", ("🎉 p",), "naïve "),
    ],
)
def test_stop_strings_end_the_text_wherever_tokens_are_cut(
    vocabulary: Vocabulary, text: str, stop: tuple[str, ...], expected: str
) -> None:
    words = encode(vocabulary, text)
    letters = [token_id for letter in text for token_id in encode(vocabulary, letter)]
    for token_ids in (words, letters):
        pieces, is_stopped = shown(vocabulary, token_ids, stop)
        assert "".join(piece.text for piece in pieces) == expected
        assert is_stopped == (expected != text)


def test_text_is_held_back_only_while_a_stop_string_can_follow(vocabulary: Vocabulary) -> None:
    letters = [token_id for letter in "ab abc" for token_id in encode(vocabulary, letter)]
    pieces, _ = shown(vocabulary, letters, ("abd",))
    assert [piece.text for piece in pieces] == ["", "", "ab ", "", "", "abc", ""]


def test_tokens_of_a_stopped_answer_are_those_of_its_text(vocabulary: Vocabulary) -> None:
    letters = [token_id for letter in "one two" for token_id in encode(vocabulary, letter)]
    pieces, _ = shown(vocabulary, letters, (" tw",))
    tokens = [t.token_id for piece in pieces for t in piece.tokens]
    assert tokens == letters[:3]


def test_a_vocabulary_in_sentencepiece_style_has_spaces_and_bytes() -> None:
    pieces = {"<unk>": 0, "▁caf": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "x": 5}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]
    vocabulary = Vocabulary(tokenizer)
    pieces_shown, _ = shown(vocabulary, [1, 2, 3, 4, 5])
    assert [piece.text for piece in pieces_shown] == [" caf", "", "é", " ", "x", ""]
    assert vocabulary.text_of(2) == "\\xc3"
