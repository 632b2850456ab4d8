"""Generation in mixed batches: what a sequence gets does not depend on its company."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from app.base_models import InstalledBaseModel
from app.domain.errors import EngineUnavailable, NotFound, TooManyRequests
from worker.generation.request import GenerationFailed, GenerationRequest, Piece
from worker.generation.sampling import SamplingParameters
from worker.generation.vocabulary import Vocabulary
from worker.serving.answers import collect
from worker.serving.loop import GenerationLoop, LoopLimits
from worker.serving.loop_adapters import LoopAdapters
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

Generate = Callable[..., list[Piece]]

GREEDY = SamplingParameters(temperature=0.0, top_logprobs=1)
PROMPTS = (
    "The capital of France is",
    "def f(n):\n",
    "Once upon a time, there lived",
    "1, 2, 3,",
)


def token_ids(piece: Piece) -> list[int]:
    return [token.token_id for token in piece.tokens]


def encode(trunk: Trunk, prompt: str) -> tuple[int, ...]:
    return tuple(trunk.tokenizer.encode(prompt, add_special_tokens=False))


def greedy(
    trunk: Trunk, prompt: str, max_tokens: int = 4, adapter: str | None = None
) -> GenerationRequest:
    return GenerationRequest(encode(trunk, prompt), max_tokens, adapter=adapter, sampling=GREEDY)


def reference_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    output: Tensor = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    generated: list[int] = output[0, len(prompt) :].tolist()
    return generated


def test_greedy_tokens_are_those_of_transformers(
    trunk: Trunk, reference_model: PreTrainedModel, generate: Generate
) -> None:
    answers = generate([greedy(trunk, prompt) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert token_ids(answer) == reference_greedy(reference_model, encode(trunk, prompt), 4)
        assert answer.finish_reason == "length"


def test_a_mixed_batch_gives_each_what_it_gets_alone(
    trunk: Trunk, random_adapters: dict[str, LoraAdapter], generate: Generate
) -> None:
    requests = [
        greedy(trunk, prompt, adapter=adapter)
        for prompt, adapter in zip(PROMPTS, (None, *random_adapters), strict=True)
    ]
    together = generate(requests, random_adapters)
    for request, answer in zip(requests, together, strict=True):
        slots = {request.adapter: random_adapters[request.adapter]} if request.adapter else {}
        alone = generate([request], slots)[0]
        assert token_ids(answer) == token_ids(alone)
        for ours, its in zip(answer.tokens, alone.tokens, strict=True):
            assert ours.logprob == pytest.approx(its.logprob, abs=1e-4)
    base_only = generate([greedy(trunk, prompt) for prompt in PROMPTS[1:]])
    for adapted, plain in zip(together[1:], base_only, strict=True):
        assert adapted.tokens[0].logprob != pytest.approx(plain.tokens[0].logprob, abs=1e-3)


# peft asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_gives_what_peft_computes(
    trunk: Trunk,
    installed_base: InstalledBaseModel,
    reference_model: PreTrainedModel,
    random_adapters: dict[str, LoraAdapter],
    generate: Generate,
    tmp_path: Path,
) -> None:
    prompt = encode(trunk, PROMPTS[2])
    requests = [
        GenerationRequest(
            prompt,
            max_tokens=0,
            adapter=name,
            sampling=SamplingParameters(top_logprobs=20),
            has_prompt_logprobs=True,
        )
        for name in random_adapters
    ]
    answers = generate(requests, random_adapters)
    for name, adapter in random_adapters.items():
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapter, installed_base.name)
    oracle = PeftModel.from_pretrained(reference_model, tmp_path / "red", adapter_name="red")
    try:
        for name, answer in zip(random_adapters, answers, strict=True):
            if name != "red":
                oracle.load_adapter(tmp_path / name, adapter_name=name)
            oracle.set_adapter(name)
            with torch.no_grad():
                logprobs = oracle(torch.tensor([prompt])).logits[0].log_softmax(-1)
            assert len(answer.prompt_tokens) == len(prompt)
            for position, token in enumerate(answer.prompt_tokens[1:]):
                for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
                    assert logprob == pytest.approx(float(logprobs[position, token_id]), abs=1e-4)
    finally:
        oracle.unload()


def test_a_prompt_in_chunks_gives_what_one_prefill_gives(
    trunk: Trunk, random_adapters: dict[str, LoraAdapter], generate: Generate
) -> None:
    long_prompt = " ".join(PROMPTS)
    requests = [
        greedy(trunk, long_prompt, 2, adapter="red"),
        greedy(trunk, PROMPTS[0], adapter=None),
        greedy(trunk, long_prompt[20:], 2, adapter="blue"),
    ]
    whole = generate(requests, random_adapters, LoopLimits(prefill_tokens_per_step=4096))
    chunks = generate(requests, random_adapters, LoopLimits(prefill_tokens_per_step=7))
    assert [*map(token_ids, whole)] == [*map(token_ids, chunks)]


def test_prompt_scores_do_not_depend_on_chunks(trunk: Trunk, generate: Generate) -> None:
    request = GenerationRequest(
        encode(trunk, PROMPTS[2]), 1, sampling=GREEDY, has_prompt_logprobs=True
    )
    (whole,) = generate([request])
    (chunks,) = generate([request], limits=LoopLimits(prefill_tokens_per_step=3))
    assert [t.token_id for t in whole.prompt_tokens] == list(request.prompt_ids)
    assert whole.prompt_tokens[0].logprob is None
    for one, other in zip(whole.prompt_tokens[1:], chunks.prompt_tokens[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_seed_gives_the_same_tokens_alone_and_in_any_company(
    trunk: Trunk, random_adapters: dict[str, LoraAdapter], generate: Generate
) -> None:
    seeded = GenerationRequest(
        encode(trunk, PROMPTS[2]),
        8,
        sampling=SamplingParameters(temperature=0.9, top_p=0.95, seed=42, top_logprobs=0),
    )
    company = [greedy(trunk, prompt, adapter="green") for prompt in PROMPTS[:2]]
    (alone,) = generate([seeded])
    (again,) = generate([seeded])
    in_company = generate([*company, seeded, seeded], random_adapters)
    assert token_ids(alone) == token_ids(again)
    assert token_ids(alone) == token_ids(in_company[-1]) == token_ids(in_company[-2])


def test_a_stop_string_ends_the_sequence_at_once(trunk: Trunk, generate: Generate) -> None:
    (free,) = generate([greedy(trunk, PROMPTS[3], 12)])
    stop = free.text[4:6]
    request = GenerationRequest(encode(trunk, PROMPTS[3]), 12, sampling=GREEDY, stop=(stop,))
    (stopped,) = generate([request])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.completion_tokens < free.completion_tokens


def test_the_end_token_ends_the_sequence(
    trunk: Trunk, vocabulary: Vocabulary, generate: Generate
) -> None:
    end = min(vocabulary.end_token_ids)
    sampling = SamplingParameters(temperature=0.0, logit_bias={end: 100.0}, top_logprobs=0)
    (answer,) = generate([GenerationRequest(encode(trunk, "a"), 5, sampling=sampling)])
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("", "stop", 1)


def test_a_cancelled_generation_leaves_and_the_others_go_on(
    trunk: Trunk, vocabulary: Vocabulary
) -> None:
    async def scenario() -> None:
        loop = GenerationLoop(trunk, vocabulary, LoopLimits(), asyncio.get_running_loop())
        try:
            endless = loop.submit([greedy(trunk, PROMPTS[2], 1500)])
            async for _ in endless:
                break
            endless.cancel()
            (other,) = await collect(loop.submit([greedy(trunk, PROMPTS[0], 4)]))
            assert other.finish_reason == "length"
            stats = loop.stats()
            assert (stats.running, stats.waiting, stats.cancelled) == (0, 0, 1)
            assert stats.generated_tokens < 20
        finally:
            loop.close()

    asyncio.run(scenario())


def test_more_than_the_queue_holds_is_refused_whole(trunk: Trunk, vocabulary: Vocabulary) -> None:
    async def scenario() -> None:
        limits = LoopLimits(max_running=1, max_queued=2)
        loop = GenerationLoop(trunk, vocabulary, limits, asyncio.get_running_loop())
        try:
            first = loop.submit([greedy(trunk, PROMPTS[0], 2)] * 3)
            with pytest.raises(TooManyRequests):
                loop.submit([greedy(trunk, PROMPTS[0], 2)])
            answers = await collect(first)
            assert len({answer.text for answer in answers}) == 1
            await collect(loop.submit([greedy(trunk, PROMPTS[0], 1)]))
        finally:
            loop.close()

    asyncio.run(scenario())


def test_a_sequence_that_breaks_the_step_fails_alone(
    trunk: Trunk, vocabulary: Vocabulary, generate: Generate
) -> None:
    (expected,) = generate([greedy(trunk, PROMPTS[0])])
    # An id outside the embedding breaks the forward pass of the whole batch.
    broken = GenerationRequest((10_000_000,), 4, sampling=GREEDY)

    async def scenario() -> None:
        loop = GenerationLoop(trunk, vocabulary, LoopLimits(), asyncio.get_running_loop())
        try:
            good = loop.submit([greedy(trunk, PROMPTS[0])])
            bad = loop.submit([broken])
            with pytest.raises(GenerationFailed):
                await collect(bad)
            assert token_ids((await collect(good))[0]) == token_ids(expected)
            assert loop.is_alive
        finally:
            loop.close()

    asyncio.run(scenario())


def test_a_detached_adapter_ends_its_answers_and_takes_no_more(
    trunk: Trunk, vocabulary: Vocabulary, random_adapters: dict[str, LoraAdapter]
) -> None:
    async def scenario() -> None:
        loop = GenerationLoop(trunk, vocabulary, LoopLimits(), asyncio.get_running_loop())
        try:
            await asyncio.wrap_future(loop.attach("red#1", random_adapters["red"]))
            running = loop.submit([greedy(trunk, PROMPTS[0], 4, adapter="red#1")])
            assert not loop.is_idle("red#1")
            loop.detach("red#1")
            with pytest.raises(NotFound):
                loop.submit([greedy(trunk, PROMPTS[0], 4, adapter="red#1")])
            (answer,) = await collect(running)
            assert answer.completion_tokens == 4
            await collect(loop.submit([greedy(trunk, PROMPTS[0], 1)]))
            assert trunk.adapters == ()
        finally:
            loop.close()

    asyncio.run(scenario())


def test_an_adapter_that_leaves_before_it_has_come_is_not_kept(
    trunk: Trunk, random_adapters: dict[str, LoraAdapter]
) -> None:
    guard = threading.Condition()
    adapters = LoopAdapters(trunk, guard)
    with guard:
        attached = adapters.join("red#1", random_adapters["red"])
        joining, gone = adapters.next_turn(set())
        adapters.leave("red#1")
    assert not gone
    adapters.attach(joining)
    attached.result(0)
    with guard:
        joining, gone = adapters.next_turn(set())
    adapters.detach(gone)

    assert (list(joining), gone) == ([], {"red#1"})
    assert "red#1" not in adapters
    assert len(adapters) == 0
    assert trunk.adapters == ()


def test_a_loop_that_has_ended_fails_what_it_left(trunk: Trunk, vocabulary: Vocabulary) -> None:
    async def scenario() -> None:
        loop = GenerationLoop(trunk, vocabulary, LoopLimits(), asyncio.get_running_loop())
        left = loop.submit([greedy(trunk, PROMPTS[0], 1000)])
        loop.close()
        with pytest.raises(EngineUnavailable):
            await collect(left)
        with pytest.raises(EngineUnavailable):
            loop.submit([greedy(trunk, PROMPTS[0], 1)])
        assert not loop.is_alive

    asyncio.run(scenario())
