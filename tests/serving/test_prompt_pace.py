"""Prompts are read in parts that leave answers their pace."""

from worker.serving.prompt_pace import PromptPace


def test_a_step_reads_what_fits_beside_the_answers() -> None:
    pace = PromptPace(256, step_seconds=0.25)
    # Nothing is known yet.
    assert pace.tokens(is_answering=True) == 256

    pace.note(0, seconds=0.05)
    pace.note(256, seconds=0.05 + 256 * 0.002)

    assert pace.tokens(is_answering=True) == 100
    assert pace.tokens(is_answering=False) == 256


def test_it_follows_a_prompt_that_becomes_dearer_and_recovers() -> None:
    pace = PromptPace(256, step_seconds=0.25)
    for _ in range(10):
        pace.note(100, seconds=2.5)
    slow = pace.tokens(is_answering=True)
    for _ in range(10):
        pace.note(16, seconds=0.001)

    # However slow, a prompt is read to its end.
    assert slow == 16
    assert pace.tokens(is_answering=True) == 256


def test_a_step_of_fewer_tokens_than_the_least_stays_so() -> None:
    pace = PromptPace(7, step_seconds=0.25)
    pace.note(7, seconds=60)

    assert pace.tokens(is_answering=True) == 7
