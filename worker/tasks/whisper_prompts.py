"""The tokens by which Whisper is told what to do with a recording."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from app.domain.errors import InvalidInput

TASK = "transcribe"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model has of them.

    Attributes:
        languages: token ids by the language's code; empty of a model that knows only English.
        named_language: the one that the model is set to; None: it listens which one it is.
        task_id: of the task of writing down what is said.
        no_timestamps_id: of the token that says that no times are wanted.
    """

    languages: Mapping[str, int]
    named_language: str | None
    task_id: int | None
    no_timestamps_id: int

    @classmethod
    def of(cls, generation: Any) -> "Prompts":
        """Read it. Raises: InvalidInput."""
        try:
            no_timestamps_id = generation.no_timestamps_token_id
            if not getattr(generation, "is_multilingual", False):
                return cls({}, None, None, no_timestamps_id)
            languages = {token.strip("<|>"): id for token, id in generation.lang_to_id.items()}
            named = getattr(generation, "language", None)
            if named is not None:
                named = TO_LANGUAGE_CODE.get(named, named.strip("<|>"))
                languages[named]
            return cls(languages, named, generation.task_to_id[TASK], no_timestamps_id)
        except (AttributeError, KeyError) as error:
            raise InvalidInput(
                f"the base model's generation_config.json does not tell of {error}"
            ) from error

    def of_language(self, language: str | None) -> list[int]:
        """Return the tokens between the one that starts it all and the transcript."""
        if language is None or self.task_id is None:
            return [self.no_timestamps_id]
        return [self.languages[language], self.task_id, self.no_timestamps_id]
