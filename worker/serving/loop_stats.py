"""What a generation loop tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoopStats:
    """What a loop is doing, and has done since it began.

    Attributes:
        refused: sequences for which there was no room to wait.
        timed_out: sequences that have waited too long.
        preempted: how often a sequence had to yield its place to another.
        kv_tokens: the memory for keys and values, in tokens; running sequences have reserved
            `kv_reserved_tokens`, and `kv_stored_tokens` keep what others can begin with.
        prefix_hits: sequences that began so.
        reused_tokens: tokens that they did not have to compute.
    """

    running: int
    waiting: int
    attached: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    cancelled: int
    refused: int
    timed_out: int
    preempted: int
    kv_tokens: int
    kv_reserved_tokens: int
    kv_stored_tokens: int
    prefix_hits: int
    reused_tokens: int
