"""Ways of training that could not take effect are refused with the reason, never ignored."""

from typing import Any

import pytest

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.training_options import check_training_options

REPLAY = {"file": "file-1", "share": 0.2}


@pytest.mark.parametrize(
    ("task", "method", "adapter", "options", "is_continued", "name"),
    [
        ("text-generation", "supervised", "lora", {"class_weights": "balanced"}, False, None),
        ("text-generation", "supervised", "lora", {"adversarial": {"type": "fgm"}}, False, None),
        ("image-classification", "supervised", "lora", {"neftune_noise_alpha": 1.0}, False, None),
        ("text-generation", "reinforcement", "lora", {"neftune_noise_alpha": 1.0}, False, None),
        ("text-generation", "supervised", "p-tuning", {"neftune_noise_alpha": 1.0}, False, None),
        ("text-generation", "dpo", "lora", {"label_smoothing": 0.1}, False, None),
        ("feature-extraction", "supervised", "lora", {"label_smoothing": 0.1}, False, None),
        ("text-generation", "supervised", "prefix-tuning", {"freeze_layers": 2}, False, None),
        ("text-classification", "supervised", "lora", {"image_size": 64}, False, None),
        ("text-generation", "supervised", "oft", {"base_quantization": "nf4"}, False, None),
        ("text-generation", "reinforcement", "lora", {"base_quantization": "int8"}, False, None),
        (
            "text-classification",
            "supervised",
            "prefix-tuning",
            {"gradient_checkpointing": True},
            False,
            None,
        ),
        ("image-classification", "supervised", "lora", {"image_size": 64}, True, None),
        ("text-classification", "supervised", "lora", {"replay": REPLAY}, False, None),
        ("text-generation", "reinforcement", "lora", {"replay": REPLAY}, True, None),
        ("text-classification", "supervised", "lora", {"anchor": {"type": "l2"}}, False, None),
        ("text-classification", "supervised", "lora", {"anchor": {"type": "ewc"}}, True, None),
        (
            "text-generation",
            "supervised",
            "lora",
            {"replay": REPLAY, "anchor": {"type": "ewc"}},
            True,
            "anchor",
        ),
        (
            "feature-extraction",
            "supervised",
            "lora",
            {"replay": REPLAY, "anchor": {"type": "ewc"}},
            True,
            "anchor",
        ),
    ],
)
def test_what_could_not_take_effect_is_refused_by_name(
    task: str,
    method: str,
    adapter: str,
    options: dict[str, Any],
    is_continued: bool,
    name: str | None,
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_training_options(
            task, method, AdapterSpec(adapter), options, is_continued=is_continued
        )
    assert refused.value.param == f"tunesmith.training.{name or next(iter(options))}"


@pytest.mark.parametrize(
    ("task", "options", "is_continued"),
    [
        ("text-generation", {"neftune_noise_alpha": 5.0, "label_smoothing": 0.1}, False),
        ("text-generation", {"replay": REPLAY, "anchor": {"type": "l2"}}, True),
        ("text-classification", {"replay": REPLAY, "anchor": {"type": "ewc"}}, True),
        ("text-classification", {"adversarial": {"type": "pgd"}, "class_weights": {}}, False),
        ("feature-extraction", {"label_smoothing": 0.0, "freeze_layers": 0}, False),
    ],
)
def test_what_takes_effect_is_let_through(
    task: str, options: dict[str, Any], is_continued: bool
) -> None:
    check_training_options(task, "supervised", AdapterSpec(), options, is_continued=is_continued)
