"""The real engine's answers, by the base model, a fine-tuned one and one of its checkpoints."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.db.repositories import adapters
from app.storage import open_storage
from tests.support.answers import QUESTION, ask, text_of
from tests.support.factories import BASE_MODEL
from tests.support.jobs import Run
from tests.support.service import Service
from tests.support.wire import strict, strict_object

# How far a log-probability may be from that of plain `peft` in float32, by the engine's dtype.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}


@pytest.fixture
def http(stack: Service) -> Iterator[httpx.Client]:
    with stack.http(stack.key) as http:
        yield http


def test_the_tuned_model_answers_otherwise_than_the_base(user: OpenAI, run: Run) -> None:
    base, tuned = (
        ask(user, model, logprobs=True, max_completion_tokens=1)
        for model in (BASE_MODEL, run.model)
    )
    assert (base.model, tuned.model) == (BASE_MODEL, run.model)
    assert base.choices[0].logprobs is not None
    assert tuned.choices[0].logprobs is not None
    assert base.choices[0].logprobs.content != tuned.choices[0].logprobs.content


@pytest.mark.parametrize("which", ["base", "tuned", "checkpoint"])
class TestAnswers:
    @pytest.fixture
    def model(self, run: Run, checkpoints: list[FineTuningJobCheckpoint], which: str) -> str:
        names = {
            "base": BASE_MODEL,
            "tuned": run.model,
            "checkpoint": checkpoints[-1].fine_tuned_model_checkpoint,
        }
        return names[which]

    def test_usage_adds_up(self, user: OpenAI, model: str) -> None:
        answer = ask(user, model, max_completion_tokens=5)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 10
        assert answer.usage.completion_tokens <= 5
        total = answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.total_tokens == total
        is_cut = answer.choices[0].finish_reason == "length"
        assert is_cut == (answer.usage.completion_tokens == 5)

    def test_a_streamed_answer_is_the_whole_one_in_pieces(
        self, user: OpenAI, http: httpx.Client, model: str
    ) -> None:
        body = {
            "model": model,
            "messages": QUESTION,
            "max_completion_tokens": 12,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        *lines, end = http.post("/v1/chat/completions", json=body).content.split(b"\n\n")[:-1]
        assert end == b"data: [DONE]"
        chunks = [
            strict_object(line.removeprefix(b"data: "), ChatCompletionChunk) for line in lines
        ]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        whole = ask(user, model)
        assert chunks[-1].usage is not None
        assert whole.usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert {chunk.model for chunk in chunks} == {model}
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == text_of(whole)
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason

    def test_a_text_is_continued(self, user: OpenAI, model: str) -> None:
        answer = user.completions.with_raw_response.create(
            model=model, prompt="Once upon a time", max_tokens=4, temperature=0, logprobs=2
        )
        completion = strict(answer, Completion)
        assert completion.choices[0].text
        assert completion.choices[0].logprobs is not None
        assert len(completion.choices[0].logprobs.tokens or ()) == 4


def test_an_answer_can_be_had_again_by_its_seed(user: OpenAI, run: Run) -> None:
    first, again, other = (
        text_of(ask(user, run.model, temperature=1.5, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_several_answers_are_numbered(user: OpenAI, run: Run) -> None:
    answer = ask(user, run.model, n=3, temperature=1, max_completion_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_an_answer_ends_before_a_stop(user: OpenAI, run: Run) -> None:
    whole = text_of(ask(user, run.model))
    stop = whole[4:7]
    stopped = ask(user, run.model, stop=[stop])
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_each_token_has_its_probability(user: OpenAI, run: Run) -> None:
    answer = ask(user, run.model, logprobs=True, top_logprobs=3, max_completion_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == text_of(answer)
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(one.logprob for one in token.top_logprobs) <= 0


def test_base_and_adapters_answer_at_once_as_they_do_alone(
    user: OpenAI, run: Run, checkpoints: list[FineTuningJobCheckpoint]
) -> None:
    models = [BASE_MODEL, run.model, checkpoints[-1].fine_tuned_model_checkpoint] * 2
    alone = {model: text_of(ask(user, model)) for model in set(models)}
    with ThreadPoolExecutor(max_workers=len(models)) as pool:
        together = list(pool.map(lambda model: text_of(ask(user, model)), models))
    assert together == [alone[model] for model in models]


def test_a_prompt_beyond_the_context_is_refused(user: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError, match="token") as refused:
        ask(user, run.model, messages=[{"role": "user", "content": "word " * 20_000}])
    assert refused.value.param in ("messages", "max_completion_tokens")


# peft 0.21 reads a name that transformers 5 has given a new one.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("stack", ["sqlite+filesystem"], indirect=True)
def test_plain_peft_gives_the_probabilities_that_the_engine_serves(
    stack: Service, user: OpenAI, run: Run, base_model_dir: Path
) -> None:
    answer = ask(user, run.model, logprobs=True, max_completion_tokens=6)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    served = [token.logprob for token in logprobs.content]
    directory = adapter_directory(stack, run)
    log = (stack.data_dir / "logs" / "engine.log").read_text()
    dtype = re.findall(r"dtype_name='(\w+)'", log)[-1]
    assert served == pytest.approx(
        greedy_logprobs(base_model_dir, directory, len(served)), abs=TOLERANCES[dtype]
    )


def adapter_directory(stack: Service, run: Run) -> Path:
    """Return the files of the job's model, as its user would copy them elsewhere."""
    with stack.database() as database, database.read() as connection:
        adapter = adapters.find(connection, stack.project_of(stack.key), run.model)
    assert adapter is not None
    return open_storage(stack.settings.storage_url).directory(adapter.storage_prefix)


def greedy_logprobs(base: Path, adapter: Path, count: int) -> list[float]:
    """Return the log-probabilities of the likeliest answer, by `transformers` and `peft` alone."""
    torch.set_num_threads(1)
    # The tokenizer and the chat template are those that came with the adapter.
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base_model, adapter).eval()
    prompt: Any = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(
        **prompt,
        max_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [logits.log_softmax(-1).max().item() for logits in generated.logits]
