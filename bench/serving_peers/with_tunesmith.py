"""This engine's own steps: continuous batching of any mixture of adapters."""

import torch
from protocol import ADAPTERS, THREADS, adapter_of, arguments, clock, serve

from worker.generation.generate import generate
from worker.generation.request import GenerationRequest
from worker.generation.sampling import SamplingParameters
from worker.generation.sequence import SequenceState
from worker.generation.step import plan_step, run_step
from worker.generation.vocabulary import Vocabulary
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.peft_format import load_adapter
from worker.trunk.quicker import use_half, use_int8
from worker.trunk.trunk import Trunk
from worker.tuning.merging import merge_into

GREEDY = SamplingParameters(temperature=0.0)
# As the engine's own default.
PREFILL_TOKENS = 256


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(THREADS)
    profile = DeviceProfile("cpu", "float32", THREADS)
    trunk = load_trunk(chosen.model, profile)
    merged = merge_into(load_trunk(chosen.model, profile), chosen.adapters / "a0")
    for one in (trunk, merged):
        # As the engine does: worker/serving/trunk_loading.py.
        if not chosen.int8:
            use_half(one)
        elif not use_int8(one):
            raise SystemExit("this model is not computed in 8 bits here")
    for index in range(ADAPTERS):
        trunk.attach(f"a{index}", load_adapter(chosen.adapters / f"a{index}"))
    # No token ends an answer: all are of the same length.
    vocabulary = Vocabulary(trunk.tokenizer)

    def answer(case: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        requests = [
            GenerationRequest(tuple(ids), tokens, sampling=GREEDY, adapter=adapter_of(case, place))
            for place, ids in enumerate(prompts)
        ]
        model = merged if case == "merged" else trunk
        return [list(one.token_ids) for one in generate(model, vocabulary, requests)]

    def first(prompts: list[list[int]]) -> float:
        return first_token_seconds(trunk, vocabulary, prompts)

    serve(answer, {"first": first})


@torch.inference_mode()
def first_token_seconds(trunk: Trunk, vocabulary: Vocabulary, prompts: list[list[int]]) -> float:
    """Return the seconds to the first token of the last prompt, others under way."""
    sequences: list[SequenceState[int]] = []
    for place, ids in enumerate(prompts):
        name = adapter_of("mixed", place)
        request = GenerationRequest(tuple(ids), 64, sampling=GREEDY, adapter=name)
        sequences.append(SequenceState(request, 0, place, vocabulary))
        sequences[-1].open(trunk.new_cache(), 0)
    running, newcomer = sequences[:-1], sequences[-1]
    while any(one.is_in_prompt for one in running):
        list(run_step(trunk, plan_step(running, PREFILL_TOKENS)))
    started = clock()
    while newcomer.is_in_prompt:
        list(run_step(trunk, plan_step(sequences, PREFILL_TOKENS)))
    return clock() - started


if __name__ == "__main__":
    main()
