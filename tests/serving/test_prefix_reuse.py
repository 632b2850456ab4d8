"""What one sequence has computed serves others of its project and adapter, and no one else."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from app.domain.job_spec import LoraSpec
from app.inference import Caller
from tests.serving.conftest import with_random_update
from tests.serving.test_scheduling import running_loop
from worker.generation.request import GenerationRequest, Piece
from worker.generation.sampling import SamplingParameters
from worker.serving.answers import collect, usage
from worker.serving.loop import GenerationLoop
from worker.serving.prefix_store import Prefix, PrefixKey, PrefixStore, as_token_ids
from worker.trunk.cache import SequenceCache
from worker.trunk.lora import LoraAdapter, new_adapter
from worker.trunk.prompt import PromptAdapter
from worker.trunk.trunk import Trunk

ALICE, BOB = Caller("alice"), Caller("bob")
PROMPT = tuple(range(200, 260))


def scored(
    prompt_ids: Sequence[int] = PROMPT, max_tokens: int = 3, adapter: str | None = None
) -> GenerationRequest:
    sampling = SamplingParameters(temperature=0.0, top_logprobs=20, logit_bias={2: -100.0})
    return GenerationRequest(tuple(prompt_ids), max_tokens, adapter, sampling)


async def ask(loop: GenerationLoop, caller: Caller, *requests: GenerationRequest) -> list[Piece]:
    return await collect(loop.submit(requests, caller))


def assert_same_logits(one: Piece, other: Piece) -> None:
    for ours, its in zip(one.tokens, other.tokens, strict=True):
        assert ours.token_id == its.token_id
        assert dict(ours.top) == pytest.approx(dict(its.top), abs=1e-5)


@pytest.fixture(scope="module")
def adapter(tiny_trunk: Trunk) -> LoraAdapter:
    return with_random_update(new_adapter(tiny_trunk.model, LoraSpec(r=4, alpha=8), 1), 1)


def test_a_prompt_that_begins_like_another_starts_where_they_part(tiny_trunk: Trunk) -> None:
    longer = (*PROMPT[:40], *range(500, 530))

    async def scenario() -> None:
        async with running_loop(tiny_trunk, prefill_tokens_per_step=16) as loop:
            (first,) = await ask(loop, ALICE, scored())
            (again,) = await ask(loop, ALICE, scored())
            (parted,) = await ask(loop, ALICE, scored(longer))
            assert [one.cached_tokens for one in (first, again, parted)] == [0, 59, 40]
            assert usage(60, [again])["prompt_tokens_details"] == {"cached_tokens": 59}
            stats = loop.stats()
            assert (stats.prefix_hits, stats.reused_tokens) == (2, 99)
            assert stats.prompt_tokens == 60 + 1 + 30
        async with running_loop(tiny_trunk) as loop:
            (fresh,) = await ask(loop, ALICE, scored(longer))
        assert_same_logits(first, again)
        assert_same_logits(parted, fresh)

    asyncio.run(scenario())


def test_a_conversation_goes_on_behind_its_last_answer(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk) as loop:
            (first,) = await ask(loop, ALICE, scored(max_tokens=10))
            said = [token.token_id for token in first.tokens]
            (second,) = await ask(loop, ALICE, scored((*PROMPT, *said, 7, 8, 9)))
            # The last token of an answer has not been through the model.
            assert second.cached_tokens == len(PROMPT) + len(said) - 1

    asyncio.run(scenario())


def test_no_one_begins_with_what_another_project_or_adapter_has_left(
    tiny_trunk: Trunk, adapter: LoraAdapter
) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk) as loop:
            await asyncio.wrap_future(loop.attach("tuned#1", adapter))
            await ask(loop, ALICE, scored(), scored(adapter="tuned#1"))
            for caller, slot in ((BOB, None), (BOB, "tuned#1"), (Caller("alice2"), None)):
                (piece,) = await ask(loop, caller, scored(adapter=slot))
                assert piece.cached_tokens == 0
            # The control: whoever left it does find it, through the same adapter alone.
            plain, tuned = await ask(loop, ALICE, scored(), scored(adapter="tuned#1"))
            assert plain.cached_tokens == 59
            with pytest.raises(AssertionError):
                assert_same_logits(plain, tuned)
            (tuned,) = await ask(loop, ALICE, scored(adapter="tuned#1"))
            assert tuned.cached_tokens == 59

    asyncio.run(scenario())


def test_nothing_is_left_of_an_adapter_that_was_unloaded(
    tiny_trunk: Trunk, adapter: LoraAdapter
) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk) as loop:
            await asyncio.wrap_future(loop.attach("tuned#1", adapter))
            running = loop.submit([scored(adapter="tuned#1", max_tokens=50)], ALICE)
            async for _ in running:
                break
            loop.detach("tuned#1")
            await collect(running)
            await asyncio.wrap_future(loop.attach("tuned#2", adapter))
            assert loop.stats().kv_stored_tokens == 0
            (piece,) = await ask(loop, ALICE, scored(adapter="tuned#2"))
            assert piece.cached_tokens == 0

    asyncio.run(scenario())


def test_behind_a_learnt_prompt_only_the_tokens_count(tiny_trunk: Trunk) -> None:
    generator = torch.Generator().manual_seed(3)
    prompt = PromptAdapter(embeddings=torch.randn(9, 32, generator=generator))

    async def scenario() -> None:
        async with running_loop(tiny_trunk) as loop:
            await asyncio.wrap_future(loop.attach("learnt#1", prompt))
            (first,) = await ask(loop, ALICE, scored(adapter="learnt#1"))
            (again,) = await ask(loop, ALICE, scored(adapter="learnt#1"))
            assert (first.cached_tokens, again.cached_tokens) == (0, 59)
            assert_same_logits(first, again)

    asyncio.run(scenario())


def test_choices_of_one_prompt_read_it_once(tiny_trunk: Trunk) -> None:
    def choice(seed: int) -> GenerationRequest:
        return GenerationRequest(PROMPT, 5, sampling=SamplingParameters(seed=seed, top_logprobs=3))

    async def scenario() -> None:
        async with running_loop(tiny_trunk, prefill_tokens_per_step=20) as loop:
            pieces = await ask(loop, ALICE, *map(choice, range(4)))
            assert loop.stats().prompt_tokens == 60 + 3
            assert [piece.cached_tokens for piece in pieces] == [0, 0, 0, 0]
        for seed, piece in enumerate(pieces):
            async with running_loop(tiny_trunk) as loop:
                (alone,) = await ask(loop, ALICE, choice(seed))
            assert [one.token_id for one in piece.tokens] == [one.token_id for one in alone.tokens]

    asyncio.run(scenario())


def test_a_scored_prompt_is_computed_whole(tiny_trunk: Trunk) -> None:
    request = GenerationRequest(
        PROMPT, 1, sampling=SamplingParameters(top_logprobs=0), has_prompt_logprobs=True
    )

    async def scenario() -> None:
        async with running_loop(tiny_trunk) as loop:
            (first,) = await ask(loop, ALICE, request)
            (again,) = await ask(loop, ALICE, request)
            assert again.cached_tokens == 0
            assert len(again.prompt_tokens) == len(PROMPT)
            for one, other in zip(first.prompt_tokens[1:], again.prompt_tokens[1:], strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-5)

    asyncio.run(scenario())


def test_what_is_stored_gives_way_before_anyone_yields(tiny_trunk: Trunk) -> None:
    async def scenario() -> None:
        async with running_loop(tiny_trunk, kv_tokens=200) as loop:
            for number in range(5):
                await ask(loop, ALICE, scored(range(number, number + 60)))
                assert loop.stats().kv_stored_tokens <= 200
            (last,) = await ask(loop, ALICE, scored(range(4, 64)))
            (first,) = await ask(loop, ALICE, scored(range(60)))
            assert (last.cached_tokens, first.cached_tokens) == (59, 0)
            assert loop.stats().preempted == 0

    asyncio.run(scenario())


class TestStore:
    KEY = PrefixKey("alice", None)

    def prefix(self, *token_ids: int) -> Prefix:
        return Prefix(self.KEY, as_token_ids(token_ids), SequenceCache(1), 10)

    def test_what_says_less_gives_way_to_what_says_more(self) -> None:
        store = PrefixStore()
        for token_ids in ((1, 2), (1, 2, 3), (1, 2), (1, 9)):
            store.add(self.prefix(*token_ids))
        assert (len(store), store.capacity) == (2, 20)
        found, length = store.longest(self.KEY, as_token_ids((1, 2, 4)))
        assert found is not None
        assert np.array_equal(found.token_ids, (1, 2, 3))
        assert length == 2
        # Used last, it is not the one to go.
        assert store.evict()
        assert store.longest(self.KEY, as_token_ids((1, 9)))[1] == 1
        assert store.longest(PrefixKey("bob", None), as_token_ids((1, 2))) == (None, 0)
