"""How many tokens of prompts a step reads, so that the answers under way do not stall."""

# What a reader hardly notices between two tokens.
STEP_SECONDS = 0.25
# So that a prompt is read to its end, however slow that is.
_LEAST_TOKENS = 16


class PromptPace:
    """Follows what steps have taken: the deeper in its context, the dearer is a token.

    Args:
        most_tokens: of one step, however fast it is.
        step_seconds: what a step should take at most while sequences wait for their next token.
    """

    def __init__(self, most_tokens: int, step_seconds: float) -> None:
        self._most_tokens = most_tokens
        self._least_tokens = min(_LEAST_TOKENS, most_tokens)
        self._step_seconds = step_seconds
        # Of a step that reads no prompt, and of a token of a prompt beside that; 0 is not known.
        self._answering_seconds = 0.0
        self._token_seconds = 0.0

    def tokens(self, *, is_answering: bool) -> int:
        """Return how many prompt tokens the next step may read.

        Args:
            is_answering: whether any sequence waits for its next token.
        """
        if not is_answering or self._token_seconds == 0.0:
            return self._most_tokens
        fitting = int((self._step_seconds - self._answering_seconds) / self._token_seconds)
        return min(max(fitting, self._least_tokens), self._most_tokens)

    def note(self, prompt_tokens: int, seconds: float) -> None:
        """Take in what a step has taken that read so many prompt tokens."""
        if prompt_tokens == 0:
            self._answering_seconds = seconds
            return
        found = max(seconds - self._answering_seconds, 0.0) / prompt_tokens
        # Half of what was known, so that a hiccup of the machine passes.
        self._token_seconds = (self._token_seconds + found) / 2 if self._token_seconds else found
