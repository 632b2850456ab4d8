"""`transformers.generate`, one request after another."""

import torch
from protocol import THREADS, arguments, serve
from transformers import AutoModelForCausalLM

chosen = arguments()
torch.set_num_threads(THREADS)
model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32).eval()
model.generation_config.eos_token_id = None


def answer(case: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    answers = []
    for ids in prompts:
        prompt = torch.tensor([ids])
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        answers.append(found[0, len(ids) :].tolist())
    return answers


serve(answer)
