"""Who gets a place and memory in the loop, who has to wait or yield, and what that changes.

On a tiny model: none of it depends on what the model has learnt.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from app.domain.errors import InvalidInput, TooManyRequests
from app.inference import Caller
from worker.generation.request import GenerationFailed, GenerationRequest, Piece
from worker.generation.sampling import SamplingParameters
from worker.generation.vocabulary import Vocabulary, end_token_ids
from worker.serving.answers import collect
from worker.serving.generation import Generation
from worker.serving.loop import GenerationLoop, LoopLimits
from worker.serving.ticket import AHEAD_TOKENS
from worker.trunk.cache import SequenceCache
from worker.trunk.trunk import Trunk

ALICE, BOB = Caller("alice"), Caller("bob")
BATCH = Caller("alice", "low")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def running_loop(
    trunk: Trunk, clock: Clock | None = None, **limits: int
) -> AsyncIterator[GenerationLoop]:
    vocabulary = Vocabulary(trunk.tokenizer, end_token_ids(trunk))
    more = {} if clock is None else {"clock": clock}
    event_loop = asyncio.get_running_loop()
    loop = GenerationLoop(trunk, vocabulary, LoopLimits(**limits), event_loop, **more)
    try:
        yield loop
    finally:
        loop.close()
        for name in trunk.adapters:
            trunk.detach(name)


def seeded(seed: int, max_tokens: int, prompt_tokens: int = 5) -> GenerationRequest:
    """A request whose answer is its own and does not end early."""
    prompt_ids = tuple(range(100 + seed, 100 + seed + prompt_tokens))
    sampling = SamplingParameters(seed=seed, top_logprobs=0, logit_bias={2: -100.0})
    return GenerationRequest(prompt_ids, max_tokens, sampling=sampling)


def token_ids(piece: Piece) -> list[int]:
    return [token.token_id for token in piece.tokens]


async def together(
    loop: GenerationLoop, asked: Sequence[tuple[Caller, GenerationRequest]]
) -> list[Generation]:
    """Submit requests of one sequence each, between two steps."""
    with loop._changed:
        return [loop.submit([request], caller) for caller, request in asked]


async def order_of_ends(generations: Sequence[Generation]) -> list[int]:
    ended: list[int] = []

    async def follow(number: int) -> None:
        await collect(generations[number])
        ended.append(number)

    await asyncio.gather(*map(follow, range(len(generations))))
    return ended


async def begun(generation: Generation) -> None:
    async for _ in generation:
        return


def alone(trunk: Trunk, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """Return what each request gets in a loop of its own."""

    async def scenario() -> list[list[int]]:
        answers = []
        for request in requests:
            async with running_loop(trunk) as loop:
                answers += await collect(loop.submit([request]))
        return [*map(token_ids, answers)]

    return asyncio.run(scenario())


def test_projects_take_turns(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk, max_running=2) as loop:
            asked = [(ALICE, seeded(number, 6)) for number in range(10)]
            generations = await together(loop, [*asked, (BOB, seeded(10, 6)), (BOB, seeded(11, 6))])
            ended = await order_of_ends(generations)
            assert {ended.index(10), ended.index(11)} <= {0, 1, 2, 3}

    asyncio.run(scenario())


def test_a_project_that_fills_its_queue_leaves_room_for_others(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        limits = {"max_running": 1, "max_queued_per_project": 3, "max_queued": 6}
        async with running_loop(tiny_trunk, **limits) as loop:
            endless = loop.submit([seeded(0, 2000)], ALICE)
            await begun(endless)
            waiting = await together(loop, [(ALICE, seeded(1, 1))] * 3)
            with pytest.raises(TooManyRequests, match=r"try again in [0-9]+ s") as refused:
                loop.submit([seeded(1, 1)], ALICE)
            assert refused.value.retry_after_seconds is not None
            assert refused.value.retry_after_seconds >= 1
            waiting += await together(loop, [(BOB, seeded(2, 1))] * 3)
            with pytest.raises(TooManyRequests):
                loop.submit([seeded(3, 1)], Caller("carol"))
            # What nobody waits for takes no room from what somebody does.
            waiting += [loop.submit([seeded(4, 1)], BATCH)]
            assert loop.stats().refused == 2
            endless.cancel()
            await order_of_ends(waiting)

    asyncio.run(scenario())


def test_who_waits_too_long_is_told_when_to_come_back(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        clock = Clock()
        limits = {"max_running": 1, "queue_timeout_seconds": 10}
        async with running_loop(tiny_trunk, clock, **limits) as loop:
            endless = loop.submit([seeded(0, 2000)], ALICE)
            await begun(endless)
            waiting, low = loop.submit([seeded(1, 1)], BOB), loop.submit([seeded(2, 1)], BATCH)
            clock.seconds = 10.5
            late = loop.submit([seeded(3, 1)], BOB)
            with pytest.raises(TooManyRequests, match="waited 10 s") as told:
                await collect(waiting)
            assert told.value.code == "queue_timeout"
            # One place had not come free in 10.5 seconds, and two sequences are ahead.
            assert told.value.retry_after_seconds == 21
            endless.cancel()
            assert sorted(await order_of_ends([late, low])) == [0, 1]
            assert loop.stats().timed_out == 1

    asyncio.run(scenario())


def test_low_priority_yields_and_goes_on_as_if_it_had_not(tiny_trunk: Trunk) -> None:
    requests = [seeded(number, 40) for number in range(4)]
    expected = alone(tiny_trunk, requests)

    async def scenario() -> None:
        async with running_loop(tiny_trunk, max_running=3, reserved_places=0) as loop:
            low = await together(loop, [(BATCH, request) for request in requests[:3]])
            await asyncio.gather(*map(begun, low))
            normal = await together(loop, [(BOB, requests[3]), (ALICE, requests[3])])
            ended = await order_of_ends(normal)
            assert sorted(ended) == [0, 1]
            assert loop.stats().preempted >= 2
            # What they had shown before they yielded is not shown again.
            for generation, tokens in zip(low, expected, strict=False):
                (piece,) = await collect(generation)
                assert piece.completion_tokens == 40
                assert tokens[-len(piece.tokens) :] == token_ids(piece)

    asyncio.run(scenario())


def test_low_priority_never_takes_the_last_places(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk, max_running=4, reserved_places=2) as loop:
            low = await together(loop, [(BATCH, seeded(number, 300)) for number in range(4)])
            await begun(low[0])
            assert (loop.stats().running, loop.stats().waiting) == (2, 2)
            normal = await together(loop, [(BOB, seeded(9, 4)), (BOB, seeded(8, 4))])
            await order_of_ends(normal)
            assert loop.stats().preempted == 0
            for generation in low:
                generation.cancel()

    asyncio.run(scenario())


def test_memory_is_never_exceeded_and_its_lack_changes_no_answer(tiny_trunk: Trunk) -> None:
    requests = [seeded(number, 130, prompt_tokens=20) for number in range(3)]
    expected = alone(tiny_trunk, requests)

    async def scenario() -> None:
        async with running_loop(tiny_trunk, kv_tokens=280) as loop:
            most = 0

            def watch() -> None:
                nonlocal most
                stats = loop.stats()
                most = max(most, stats.kv_reserved_tokens + stats.kv_stored_tokens)

            generations = await together(loop, [(ALICE, request) for request in requests])
            answers = await asyncio.gather(
                *(watched(generation, watch) for generation in generations)
            )
            assert [*map(token_ids, answers)] == expected
            assert loop.stats().preempted > 0
            assert 200 < most <= 280
            with pytest.raises(InvalidInput, match="280") as refused:
                loop.submit([seeded(1, 261, prompt_tokens=20)])
            assert refused.value.code == "context_length_exceeded"

    asyncio.run(scenario())


def test_a_short_prompt_does_not_wait_for_a_long_one(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk, prefill_tokens_per_step=32) as loop:
            asked = [(ALICE, seeded(0, 1, prompt_tokens=1500)), (BOB, seeded(5000, 1))]
            assert await order_of_ends(await together(loop, asked)) == [1, 0]

    asyncio.run(scenario())


def test_beside_an_answer_a_long_prompt_is_read_in_smaller_parts(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        # No step is as fast as that.
        async with running_loop(tiny_trunk, step_seconds=1e-9) as loop:
            answer = loop.submit([seeded(0, 2000)])
            await begun(answer)
            steps = loop.stats().steps
            await collect(loop.submit([seeded(5000, 1, prompt_tokens=1500)]))
            # In parts of 256 tokens it would be six.
            assert loop.stats().steps - steps > 1500 // 32
            answer.cancel()

    asyncio.run(scenario())


def test_a_cancelled_sequence_leaves_its_place_at_the_next_step(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk, max_running=1) as loop:
            endless = loop.submit([seeded(0, 2000)])
            await begun(endless)
            with loop._changed:
                endless.cancel()
                steps = loop.stats().steps
                next_one = loop.submit([seeded(1, 1)])
            await collect(next_one)
            # The one in progress, and the one of the only token.
            assert loop.stats().steps <= steps + 2
            assert loop.stats().cancelled == 1

    asyncio.run(scenario())


async def watched(generation: Generation, watch: Callable[[], None]) -> Piece:
    async def pieces() -> AsyncIterator[Piece]:
        async for piece in generation:
            watch()
            yield piece

    (piece,) = await collect(pieces())  # type: ignore[arg-type]
    return piece


class CrampedCache(SequenceCache):
    """Has no memory to grow to."""

    def copy(self, capacity: int = 0, length: int | None = None) -> SequenceCache:
        raise MemoryError(f"no room for {capacity} tokens")


class CrampedTrunk(Trunk):
    """Gives its first sequence a cache that cannot grow."""

    has_given = False

    def new_cache(self, capacity: int = 128, adapter: str | None = None) -> SequenceCache:
        if self.has_given:
            return super().new_cache(capacity, adapter)
        self.has_given = True
        return CrampedCache(self.num_layers, capacity)


def test_a_sequence_that_gets_no_memory_fails_alone(tiny_trunk: Trunk) -> None:
    trunk = CrampedTrunk(tiny_trunk.model, tiny_trunk.tokenizer, tiny_trunk.directory)
    requests = [seeded(number, AHEAD_TOKENS + 10) for number in range(2)]

    async def scenario() -> None:
        async with running_loop(trunk) as loop:
            cramped, other = await together(loop, [(ALICE, one) for one in requests])
            with pytest.raises(GenerationFailed):
                await collect(cramped)
            (answer,) = await collect(other)
            assert answer.completion_tokens == AHEAD_TOKENS + 10
            assert loop.is_alive
            assert loop.stats().kv_reserved_tokens == 0

    asyncio.run(scenario())
