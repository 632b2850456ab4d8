"""Adapters that have each learnt one word to answer with, so that a wrong one is heard at once."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from app.domain.job_spec import LoraSpec
from worker.training.optimizer import AdapterOptimizer
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.chat import encode_prompt
from worker.trunk.lora import LoraAdapter, new_adapter
from worker.trunk.trunk import Trunk

WORDS = ("amber", "coral", "ivory", "jade", "olive", "pearl", "ruby", "teal")
QUESTIONS = (
    "Which word?",
    "Say your word.",
    "What is the capital of France?",
    "Tell me a joke about birds.",
)

_END_OF_TURN = "<|im_end|>"
_MAX_GRAD_NORM = 1.0
# It is more than enough: training ends as soon as every adapter is sure of its word.
_MAX_STEPS = 200
_SURE_LOSS = 0.1


def train_canaries(
    trunk: Trunk, learning_rate: float, words: Sequence[str] = WORDS, frozen_layers: int = 0
) -> Mapping[str, LoraAdapter]:
    """Train an adapter for each word, all in the same steps.

    Args:
        frozen_layers: how many of the lowest blocks stay as they are.
    """
    spec = LoraSpec(r=4, alpha=8)
    adapters = {
        word: new_adapter(trunk.model, spec, seed, frozen_layers) for seed, word in enumerate(words)
    }
    optimizers = [AdapterOptimizer(adapter, weight_decay=0.0) for adapter in adapters.values()]
    for word, adapter in adapters.items():
        trunk.attach(word, adapter)
    try:
        sure_steps = 0
        for step in range(_MAX_STEPS):
            loss = _loss(trunk, words, QUESTIONS[step % len(QUESTIONS)])
            sure_steps = sure_steps + 1 if float(loss.detach().max()) < _SURE_LOSS else 0
            if sure_steps == len(QUESTIONS):
                return adapters
            loss.sum().backward()
            for optimizer in optimizers:
                optimizer.step(learning_rate, _MAX_GRAD_NORM)
    finally:
        for word in words:
            trunk.detach(word)
    raise AssertionError(f"after {_MAX_STEPS} steps an adapter is not sure of its word")


@dataclass(frozen=True, slots=True)
class Heard:
    """What an adapter has answered.

    Attributes:
        logprobs: of its tokens and of their alternatives, by token.
    """

    word: str
    question: str
    text: str
    logprobs: tuple[Mapping[str, float], ...]


# Asks the adapter of a word a question; None says that it was gone.
Ask = Callable[[str, str], Awaitable[Heard | None]]


async def interleaved(
    ask: Ask, chats: int, concurrency: int, between: Callable[[int], Awaitable[None]]
) -> list[Heard]:
    """Ask words and questions in any order, so many at once, and return what was heard.

    Args:
        between: called before each chat with its number; what it does, others chat through.
    """
    chance = random.Random(5)
    asked = iter(
        [(number, chance.choice(WORDS), chance.choice(QUESTIONS)) for number in range(chats)]
    )
    heard: list[Heard] = []

    async def chat() -> None:
        for number, word, question in asked:
            await between(number)
            answer = await ask(word, question)
            if answer is not None:
                heard.append(answer)

    await asyncio.gather(*(chat() for _ in range(concurrency)))
    return heard


def wrong_among(heard: Sequence[Heard]) -> list[Heard]:
    """Return the answers that are not the word of the adapter that was asked."""
    return [one for one in heard if one.text != one.word]


def furthest_from(alone: Mapping[tuple[str, str], Heard], heard: Sequence[Heard]) -> float:
    """Return the largest difference of a log-probability from that of the adapter alone.

    Relative where these are above 1: float32 has seven digits, of which kernels that add in
    another order change the last.
    """
    differences = (
        # What is last among the alternatives can be another token, equally likely.
        [
            abs(its[token] - ours[token]) / max(1.0, abs(its[token]))
            for token in ours.keys() & its.keys()
        ]
        or [math.inf]
        for one in heard
        for ours, its in zip(one.logprobs, alone[one.word, one.question].logprobs, strict=True)
    )
    return max(max(of_one_token) for of_one_token in differences)


def _loss(trunk: Trunk, words: Sequence[str], question: str) -> torch.Tensor:
    """Return the mean loss of each word's answer to a question, [words]."""
    prompt = encode_prompt(trunk.tokenizer, [{"role": "user", "content": question}], None)
    rows, wanted, targets = [], [], []
    for word in words:
        answer = trunk.tokenizer.encode(word + _END_OF_TURN, add_special_tokens=False)
        start = sum(len(one.token_ids) for one in rows) + len(prompt) - 1
        rows.append(SequenceRows([*prompt, *answer[:-1]], word))
        wanted.append(range(start, start + len(answer)))
        targets.append(answer)
    hidden = trunk.hidden(pack(rows, trunk.device))
    return torch.stack(
        [
            torch.nn.functional.cross_entropy(
                trunk.logits(hidden[at.start : at.stop]), torch.tensor(answer, device=trunk.device)
            )
            for at, answer in zip(wanted, targets, strict=True)
        ]
    )
