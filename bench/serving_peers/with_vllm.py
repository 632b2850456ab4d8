"""vLLM on the CPU, with LoRA enabled."""

import os

os.environ.update(
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_HOST_IP="127.0.0.1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
)

from protocol import ADAPTERS, adapter_of, arguments, serve
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

chosen = arguments()
llm = LLM(
    str(chosen.model),
    dtype="float32",
    enforce_eager=True,
    enable_lora=True,
    max_loras=ADAPTERS,
    max_lora_rank=16,
    max_num_seqs=16,
    max_model_len=1024,
    # Else a prompt that has been seen costs nothing the next time.
    enable_prefix_caching=False,
    disable_log_stats=True,
)
adapters = {
    f"a{index}": LoRARequest(f"a{index}", index + 1, str(chosen.adapters / f"a{index}"))
    for index in range(ADAPTERS)
}


def answer(case: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    names = [adapter_of(case, place) for place in range(len(prompts))]
    found = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True),
        lora_request=[adapters[name] if name else None for name in names],
        use_tqdm=False,
    )
    return [list(one.outputs[0].token_ids) for one in found]


serve(answer)
