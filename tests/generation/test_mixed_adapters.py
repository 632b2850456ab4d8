"""Adapters of unlike shapes in one batch, against `peft` with each of them alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.domain.job_spec import LoraSpec
from worker.generation.generate import generate
from worker.generation.request import GenerationRequest
from worker.generation.sampling import SamplingParameters
from worker.generation.vocabulary import Vocabulary
from worker.trunk.chat import encode_prompt
from worker.trunk.lora import new_adapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

MAX_TOKENS = 6
SPECS = {
    "first": LoraSpec(),
    "second": LoraSpec(),
    "narrow": LoraSpec(r=4, alpha=8),
    "attention": LoraSpec(r=8, alpha=16, target_modules=("q_proj", "v_proj")),
}
# Two sequences of one adapter; and others that begin when one has ended.
ORDER = ("second", None, "first", "attention", "second", "narrow")


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_tokens_are_those_of_peft(trunk: Trunk, vocabulary: Vocabulary, tmp_path: Path) -> None:
    for seed, (name, spec) in enumerate(SPECS.items()):
        adapter = new_adapter(trunk.model, spec, seed)
        generator = torch.Generator().manual_seed(seed)
        for pair in adapter.weights.values():
            pair.b.normal_(0, 0.2, generator=generator)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapter, "base")
        trunk.attach(name, adapter)
    requests = [
        GenerationRequest(
            tuple(encode_prompt(trunk.tokenizer, [{"role": "user", "content": text}], None)),
            max_tokens=MAX_TOKENS - place % 3,
            sampling=SamplingParameters(temperature=0.0),
            adapter=name,
        )
        for place, (name, text) in enumerate(
            zip(ORDER, (f"Tell me of {n} things." for n in range(2, 8)), strict=True)
        )
    ]
    try:
        found = [one.token_ids for one in generate(trunk, vocabulary, requests, max_running=5)]
        alone = [
            generate(trunk, vocabulary, [replace(request, adapter=None)])[0].token_ids
            for request in requests
        ]
    finally:
        for name in SPECS:
            trunk.detach(name)

    expected = answers_of_peft(trunk.directory, tmp_path, requests)
    assert found == expected
    changed = [tokens != plain for tokens, plain in zip(found, alone, strict=True)]
    assert changed == [name is not None for name in ORDER], "each adapter says something else"


def answers_of_peft(
    base: Path, adapters: Path, requests: list[GenerationRequest]
) -> list[tuple[int, ...]]:
    """Return what `peft` generates for each request by itself."""
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    first = next(iter(SPECS))
    model: Any = PeftModel.from_pretrained(plain, adapters / first, adapter_name=first)
    for name in SPECS:
        if name != first:
            model.load_adapter(adapters / name, adapter_name=name)
    answers: list[tuple[int, ...]] = []
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        asked = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "max_new_tokens": request.max_tokens,
            "do_sample": False,
        }
        if request.adapter is None:
            with model.disable_adapter():
                whole = model.generate(**asked)
        else:
            model.set_adapter(request.adapter)
            whole = model.generate(**asked)
        answers.append(tuple(whole[0, prompt.shape[1] :].tolist()))
    return answers
