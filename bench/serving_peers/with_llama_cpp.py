"""llama.cpp on the CPU: a static batch of the base model, through its own C interface."""

import llama_cpp
import numpy as np
from protocol import THREADS, arguments, serve

MAX_STREAMS = 32
BATCH_TOKENS = MAX_STREAMS * 64
CONTEXT_TOKENS = MAX_STREAMS * 256

chosen = arguments()
llama_cpp.llama_backend_init()
model_options = llama_cpp.llama_model_default_params()
model_options.n_gpu_layers = 0
# Where the processor has AMX, the kernels for it end this version's process on 8 bits.
model_options.use_extra_bufts = chosen.gguf.stem != "q8_0"
model = llama_cpp.llama_model_load_from_file(str(chosen.gguf).encode(), model_options)
options = llama_cpp.llama_context_default_params()
options.n_ctx, options.n_seq_max = CONTEXT_TOKENS, MAX_STREAMS
options.n_batch = options.n_ubatch = BATCH_TOKENS
options.n_threads = options.n_threads_batch = THREADS
options.kv_unified = True
context = llama_cpp.llama_init_from_model(model, options)
vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)


def answer(case: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    if sum(map(len, prompts)) > BATCH_TOKENS:
        raise ValueError(f"prompts of at most {BATCH_TOKENS} tokens together")
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = prompts
    start = 0
    for _ in range(tokens):
        last = decode(rows, start)
        for found, place in zip(answers, last, strict=True):
            logits = llama_cpp.llama_get_logits_ith(context, place)
            found.append(int(np.ctypeslib.as_array(logits, (vocab_size,)).argmax()))
        start += len(rows[0])
        rows = [[found[-1]] for found in answers]
    return answers


def decode(rows: list[list[int]], start: int) -> list[int]:
    """Put tokens behind each sequence, and return where in the batch each one's last token is."""
    last = []
    size = 0
    for sequence, ids in enumerate(rows):
        for offset, token in enumerate(ids):
            batch.token[size], batch.pos[size] = token, start + offset
            batch.n_seq_id[size], batch.seq_id[size][0] = 1, sequence
            batch.logits[size] = offset == len(ids) - 1
            size += 1
        last.append(size - 1)
    batch.n_tokens = size
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError("llama.cpp could not decode a batch")
    return last


serve(answer)
