"""What goes together: the page about it, and what is refused with the reason."""

import pytest

from app.domain.combinations import check_combination, check_continuation
from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS
from tests.support.service import REPOSITORY
from worker.tuning.peft_config import _FIELDS
from worker.tuning.table import table, updated


def test_the_page_is_up_to_date() -> None:
    page = (REPOSITORY / "docs" / "adapters.md").read_text()
    assert updated(page) == page, "run `python -m worker.tuning.table`"
    assert updated(page.replace("| trains, serves", "| trains")) == page


def test_the_table_has_every_kind_and_task() -> None:
    lines = table().splitlines()
    assert all(f"`{task}`" in lines[0] for task in TASKS)
    assert [line.split("`")[1] for line in lines[2 : 2 + len(PEFT_KINDS)]] == list(PEFT_KINDS)


def test_every_kind_has_a_configuration() -> None:
    assert set(_FIELDS) == {name for name, kind in PEFT_KINDS.items() if kind.peft_config}


@pytest.mark.parametrize(
    ("task", "adapter", "field", "reason"),
    [
        ("feature-extraction", AdapterSpec("prompt-tuning"), "type", "mean over all tokens"),
        ("image-classification", AdapterSpec("prefix-tuning"), "type", "no tokens"),
        (
            "text-generation",
            AdapterSpec("adalora", {"init_r": 4, "target_r": 4}),
            "target_r",
            "takes ranks away",
        ),
        (
            "text-generation",
            AdapterSpec("lora", {"use_dora": True, "init": "pissa"}),
            "use_dora",
            "exclude each other",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    task: str, adapter: AdapterSpec, field: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        check_combination(task, "supervised", adapter)
    assert caught.value.param == f"tunesmith.adapter.{field}"


def test_p_tuning_is_not_gone_on_with() -> None:
    check_continuation(AdapterSpec("prompt-tuning"))
    with pytest.raises(InvalidInput, match="not the encoder"):
        check_continuation(AdapterSpec("p-tuning"))
