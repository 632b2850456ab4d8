"""PEFT's `adapter_names`: a static batch, padded on the left, an adapter for each row."""

import torch
from peft import PeftModel
from protocol import ADAPTERS, THREADS, adapter_of, arguments, serve
from transformers import AutoModelForCausalLM

chosen = arguments()
torch.set_num_threads(THREADS)
base = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32).eval()
base.generation_config.eos_token_id = None
model = PeftModel.from_pretrained(base, chosen.adapters / "a0", adapter_name="a0")
for index in range(1, ADAPTERS):
    model.load_adapter(chosen.adapters / f"a{index}", adapter_name=f"a{index}")
model.eval()


def answer(case: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    names = [adapter_of(case, place) or "__base__" for place in range(len(prompts))]
    found = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        adapter_names=names,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return found[:, width:].tolist()


serve(answer)
