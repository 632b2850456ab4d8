"""One base model in service: its weights, tokens, chat template and generation loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from worker.generation.grammar import Grammar, GrammarCompiler
from worker.generation.vocabulary import Vocabulary, end_token_ids
from worker.serving.cache_memory import default_kv_tokens
from worker.serving.loop import GenerationLoop, LoopLimits
from worker.trunk.chat import encode_completion_prompt, encode_prompt
from worker.trunk.positions import longest_apart
from worker.trunk.trunk import Trunk

T = TypeVar("T")


class ServedBase:
    """A loaded base model and the threads that work for it.

    Attributes:
        files: where it came from.
        loop: generates; see `worker.serving.generation` for how to talk to it.
        vocab_size: token ids below this can be in a prompt.
        numbers: what its answers depend on beside the weights: the format that they are in.
        context_length: what prompt and answer can have together: the model's own context, what
            the memory for keys and values holds, or what leaves other sequences as they are.
    """

    def __init__(
        self,
        files: InstalledBaseModel,
        trunk: Trunk,
        limits: LoopLimits,
        event_loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.files = files
        self.numbers = "int8" if trunk.packing == "int8" else str(trunk.dtype)
        self.vocab_size = int(trunk.head_weight.shape[0])
        self.vocabulary = Vocabulary(trunk.tokenizer, end_token_ids(trunk))
        context_length = files.context_length
        if (apart := longest_apart(trunk.model.config)) is not None:
            context_length = min(context_length, apart)
        kv_tokens = limits.kv_tokens or default_kv_tokens(trunk, limits.max_running, context_length)
        self.context_length = min(context_length, kv_tokens)
        self.loop = GenerationLoop(
            trunk, self.vocabulary, replace(limits, kv_tokens=kv_tokens), event_loop
        )
        self._grammars = GrammarCompiler(self.vocabulary, self.vocab_size)
        self._model = trunk.model
        self._tokenizer = trunk.tokenizer
        # One thread, since a tokenizer is not safe to share; and off the event loop, since a
        # long conversation takes its time.
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoding")
        # A thread of its own, so that a grammar holds up no prompt.
        self._compiling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        chat_template: str | None,
    ) -> list[int]:
        """Return the prompt's token ids, as training rendered it.

        Args:
            messages: as `as_template_messages` returns them.
            chat_template: takes the place of the base model's own.

        Raises:
            InvalidInput: the template does not accept the messages or the tools.
        """

        def encode() -> list[int]:
            return encode_prompt(self._tokenizer, messages, tools or None, chat_template)

        try:
            return await self._off_event_loop(encode)
        except InvalidInput as error:
            error.param = error.param or "messages"
            raise

    async def encode_text(self, prompt: str) -> list[int]:
        """Return the token ids of a plain prompt, as training encoded it."""
        return await self._off_event_loop(lambda: encode_completion_prompt(self._tokenizer, prompt))

    def chat_template(self, own: str | None) -> str:
        """Return the template that renders conversations with tools.

        Args:
            own: takes the place of the base model's own.
        """
        template: str = self._tokenizer.get_chat_template(own, [{}])
        return template

    async def compile_grammar(self, definition: str, param: str) -> Grammar:
        """Return a grammar for the tokens of this model. Raises: as `GrammarCompiler.compile`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._compiling, self._grammars.compile, definition, param
        )

    def input_width(self, path: str) -> int:
        """Return how many inputs the layer at a path has. Raises: AttributeError."""
        layer: Any = self._model.get_submodule(path)
        return int(layer.in_features)

    def retire(self) -> None:
        """Take in nothing new; what runs goes on."""
        # The other threads end with this object: a request that is being encoded is still told
        # by the loop what has become of its model.
        self.loop.retire()

    def close(self) -> None:
        self.loop.close()
        self._encoding.shutdown(cancel_futures=True)
        self._compiling.shutdown(cancel_futures=True)

    async def _off_event_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoding, work)
