"""What each token id stands for in bytes: the ground of text, stop strings and log-probabilities.

Generated text is the concatenation of its tokens' bytes, so a character that is split over
several tokens needs no second look at the tokens before it.
"""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from worker.trunk.trunk import Trunk

# How a SentencePiece vocabulary writes a byte that has no piece of its own, and a space.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


class Vocabulary:
    """The tokens of one tokenizer: byte-level BPE (GPT-2's alphabet) or SentencePiece style.

    Attributes:
        end_token_ids: tokens that end an answer.
        tokenizer: whose tokens they are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end_token_ids: frozenset[int] = frozenset()
    ) -> None:
        self.end_token_ids = end_token_ids
        self.tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        self._is_byte_level = _has_byte_level_decoder(tokenizer)
        alphabet: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        self._byte_of = {character: byte for byte, character in alphabet.items()}
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token; ids that the tokenizer does not know have none.

        A model's output can be wider than its tokenizer: rows are padded to round numbers.
        """
        if token_id not in self._bytes:
            self._bytes[token_id] = self._look_up(token_id)
        return self._bytes[token_id]

    def text_bytes_of(self, token_id: int) -> bytes:
        """Return what a token adds to the text: nothing if it is a special token."""
        added = self._added.get(token_id)
        return b"" if added is not None and added.special else self.bytes_of(token_id)

    def special_ids_in(self, text: str) -> dict[str, int]:
        """Return the special tokens that a text holds, by their text."""
        return {
            token.content: token_id
            for token_id, token in self._added.items()
            if token.special and token.content in text
        }

    def text_of(self, token_id: int) -> str:
        """Return a token as a string, with `\\xf0` for each byte of a split character."""
        return self.bytes_of(token_id).decode("utf-8", errors="backslashreplace")

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):
            return b""
        if self._is_byte_level:
            return b"".join(
                bytes([self._byte_of[character]])
                if character in self._byte_of
                else character.encode()
                for character in piece
            )
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace(_SPACE, " ").encode()


def end_token_ids(trunk: Trunk) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's, and those the model's files name."""
    configured = getattr(trunk.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(one for one in (*ids, trunk.tokenizer.eos_token_id) if isinstance(one, int))


def _has_byte_level_decoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)
