"""What a process pays for the evaluation before it evaluates."""

import subprocess
import sys

HEAVY = {"jiwer", "matplotlib", "nltk", "rouge_score", "sacrebleu", "scipy", "sklearn"}
NEVER = {"torch", "transformers", "peft", "safetensors"}


def imported_with(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_the_report_and_what_it_compares_are_light() -> None:
    light = ("averages", "comparison", "language", "markdown", "report", "worst_rows")
    imported = imported_with(*(f"worker.evaluation.{module}" for module in light))
    assert "numpy" in imported
    assert not imported & (HEAVY | NEVER)


def test_what_is_heavy_comes_with_the_families_and_never_with_torch() -> None:
    heavy = ("classification", "generation", "transcription", "pictures.confusion_matrix")
    imported = imported_with(*(f"worker.evaluation.{module}" for module in heavy))
    assert imported >= HEAVY
    assert not imported & NEVER


def test_metrics_are_known_without_any_library() -> None:
    assert not imported_with("app.domain.metrics") & (HEAVY | NEVER | {"numpy"})
