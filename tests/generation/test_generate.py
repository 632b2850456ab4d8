"""Generating to the end without a loop of its own: the engine's steps, in one call."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.domain.job_spec import LoraSpec
from worker.generation.generate import Generated, generate
from worker.generation.request import GenerationRequest
from worker.generation.sampling import SamplingParameters
from worker.generation.vocabulary import Vocabulary
from worker.trunk.chat import encode_prompt
from worker.trunk.lora import new_adapter
from worker.trunk.trunk import Trunk

GREEDY = SamplingParameters(temperature=0.0)


@pytest.fixture(scope="module")
def requests(trunk: Trunk) -> list[GenerationRequest]:
    questions = ("Say yes.", "What is the capital of France? Answer with one word.", "Count.")
    return [
        GenerationRequest(
            tuple(encode_prompt(trunk.tokenizer, [{"role": "user", "content": text}], None)),
            max_tokens=10,
            sampling=GREEDY,
        )
        for text in questions
    ]


def test_answers_are_those_of_transformers(
    trunk: Trunk, vocabulary: Vocabulary, requests: list[GenerationRequest]
) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        trunk.directory, dtype=torch.float32, local_files_only=True
    )
    # Fewer places than requests: one that ends makes room for the next.
    found = generate(trunk, vocabulary, requests, max_running=2)

    for request, answer in zip(requests, found, strict=True):
        prompt = torch.tensor([request.prompt_ids])
        whole = model.generate(  # type: ignore[misc]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False
        )
        expected = whole[0, prompt.shape[1] :].tolist()
        assert list(answer.token_ids) == expected
        assert answer.text == trunk.tokenizer.decode(expected, skip_special_tokens=True)
        has_ended = expected[-1] in vocabulary.end_token_ids
        assert answer.finish_reason == ("stop" if has_ended else "length")
    assert {one.finish_reason for one in found} == {"stop", "length"}


def test_a_seed_decides_an_answer(
    trunk: Trunk, vocabulary: Vocabulary, requests: list[GenerationRequest]
) -> None:
    def answers(*seeds: int) -> list[Generated]:
        asked = [replace(requests[2], sampling=SamplingParameters(seed=seed)) for seed in seeds]
        return generate(trunk, vocabulary, asked)

    first = answers(1, 2, 3)
    assert answers(1, 2, 3) == first
    assert len({one.token_ids for one in first}) == 3


def test_a_prompt_that_is_asked_twice_is_read_once(
    trunk: Trunk, vocabulary: Vocabulary, requests: list[GenerationRequest]
) -> None:
    steps: list[int] = []

    def before_step() -> None:
        steps.append(len(steps))

    alone = generate(trunk, vocabulary, requests)
    twice = generate(trunk, vocabulary, [*requests, *requests], before_step=before_step)

    assert twice == [*alone, *alone]
    # One step for the prompts, and then one for each token.
    assert len(steps) == 1 + 10


def test_an_adapter_answers_for_itself(
    trunk: Trunk, vocabulary: Vocabulary, requests: list[GenerationRequest]
) -> None:
    adapter = new_adapter(trunk.model, LoraSpec(r=2, alpha=4), 1)
    with torch.no_grad():
        for pair in adapter.weights.values():
            pair.b.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    base = generate(trunk, vocabulary, requests[:1])
    trunk.attach("mine", adapter)
    try:
        both = generate(trunk, vocabulary, [requests[0], replace(requests[0], adapter="mine")])
    finally:
        trunk.detach("mine")

    assert both[0] == base[0]
    assert both[1].token_ids != base[0].token_ids


def test_it_ends_when_it_is_told_to(
    trunk: Trunk, vocabulary: Vocabulary, requests: list[GenerationRequest]
) -> None:
    steps = iter(range(2))

    with pytest.raises(StopIteration):
        generate(trunk, vocabulary, requests, before_step=lambda: next(steps) and None)
