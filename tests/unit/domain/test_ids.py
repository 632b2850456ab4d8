import re

import pytest

from app.domain.ids import checkpoint_model_name, fine_tuned_model_name, new_id


def test_ids_have_their_prefix_and_differ() -> None:
    ids = {new_id("file-") for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch(r"file-[0-9A-Za-z]{24}", one) for one in ids)


def test_ids_have_no_characters_that_look_alike() -> None:
    assert not set("".join(new_id("") for _ in range(200))) & set("IOilo")


def test_a_fine_tuned_model_is_named_after_base_organisation_suffix_and_job() -> None:
    name = fine_tuned_model_name("base", "acme", "desk", "ftjob-0123456789ABCDEF")
    assert name == "ft:base:acme:desk:0123456789AB"


def test_without_a_suffix_its_place_stays() -> None:
    assert fine_tuned_model_name("base", "acme", None, "ftjob-0123456789AB").split(":")[3] == ""


@pytest.mark.parametrize(
    ("organization", "told"),
    [("ACME", "acme"), ("Acme & Söhne", "acme-s-hne"), ("a:b/c", "a-b-c")],
)
def test_an_organisation_cannot_break_the_name_apart(organization: str, told: str) -> None:
    name = fine_tuned_model_name("base", organization, None, "ftjob-0123456789AB")
    assert name == f"ft:base:{told}::0123456789AB"


def test_a_checkpoint_is_named_after_its_model_and_step() -> None:
    assert checkpoint_model_name("ft:b:o:s:1", 12) == "ft:b:o:s:1:ckpt-step-12"
