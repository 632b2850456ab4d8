import io
from math import inf, nan
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from worker.evaluation.measure import Confusion
from worker.evaluation.pictures.confusion_matrix import MAX_CLASSES, draw_confusion_matrix
from worker.evaluation.pictures.loss_curves import Points, draw_loss_curves
from worker.evaluation.pictures.rendering import Picture

SVG = "{http://www.w3.org/2000/svg}"
FALLING = [(step, 3 / step) for step in range(1, 31)]


def confusion(*labels: str, seed: int = 0) -> Confusion:
    counts = np.random.default_rng(seed).integers(0, 30, (len(labels), len(labels)))
    return Confusion(labels, tuple(tuple(line) for line in counts.tolist()))


def texts(picture: Picture) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]


def check(picture: Picture) -> None:
    """Check that both are pictures, of the same shape, with something on them."""
    with Image.open(io.BytesIO(picture.png)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 2
        width, height = image.size
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == f"{SVG}svg"
    _, _, svg_width, svg_height = map(float, root.attrib["viewBox"].split())
    assert width / height == pytest.approx(svg_width / svg_height, rel=0.01)


def assert_nothing_is_cut_off(picture: Picture) -> None:
    with Image.open(io.BytesIO(picture.png)) as image:
        pixels = np.asarray(image.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (FALLING, [(0, 3.5), (15, 1.0), (30, 0.8)]),
        (FALLING, []),
        ([(1, 2.0)], []),
        ([], []),
        ([(1, nan), (2, inf)], [(2, nan)]),
        ([(step, 1.0 + step % 7) for step in range(3_000)], [(step, 1.0) for step in range(200)]),
    ],
)
def test_loss_curves_are_drawn_whatever_there_is(train: Points, validation: Points) -> None:
    check(draw_loss_curves(train, validation))


def test_the_legend_names_what_is_there() -> None:
    assert {"train", "validation", "chosen: step 15"} <= set(
        texts(draw_loss_curves(FALLING, [(15, 1.0)], best_step=15, title="Loss of ft:x"))
    )
    alone = texts(draw_loss_curves(FALLING, []))
    assert "train" in alone
    assert "validation" not in alone


def test_losses_that_cannot_be_drawn_are_told() -> None:
    assert "2 of 32 losses are not finite" in texts(
        draw_loss_curves([*FALLING, (31, nan), (32, inf)], [])
    )
    assert "no losses" in texts(draw_loss_curves([], []))


def test_many_steps_are_smoothed_and_it_is_told_over_how_many() -> None:
    many = [(step, 1.0) for step in range(1, 501)]
    assert "train (mean of 10 steps)" in texts(draw_loss_curves(many, []))


@pytest.mark.parametrize(
    "labels",
    [
        ("no", "yes"),
        ("a class whose name goes on for quite a while", "b", "c"),
        tuple(f"department-{number}" for number in range(20)),
        ("only",),
        ("", "$x^2$ costs $10", "<&>", "two\nlines"),
    ],
)
def test_confusion_matrices_are_drawn_whole(labels: tuple[str, ...]) -> None:
    picture = draw_confusion_matrix(confusion(*labels))
    check(picture)
    assert_nothing_is_cut_off(picture)


def test_cells_hold_the_counts_and_names_are_cut_but_kept() -> None:
    picture = draw_confusion_matrix(Confusion(("a" * 40, "$b"), ((7, 0), (12_345, 8))))
    found = texts(picture)
    assert {"7", "8", "12345"} <= set(found)
    assert "0" not in found
    assert found.count("a" * 23 + "…") == 2
    assert found.count("$b") == 2


def test_names_in_scripts_without_a_font_are_numbers_in_png_and_themselves_in_svg() -> None:
    tibetan = Confusion(("good", "\u0f56\u0f7c\u0f51"), ((1, 0), (0, 1)))
    numbered = Confusion(("good", "class 1"), ((1, 0), (0, 1)))
    picture = draw_confusion_matrix(tibetan)
    assert "\u0f56\u0f7c\u0f51" in texts(picture)
    assert picture.png == draw_confusion_matrix(numbered).png


def test_beyond_fifty_classes_the_rarest_are_drawn_together() -> None:
    labels = tuple(f"c{number}" for number in range(60))
    counts = np.diag(np.arange(60) + 1)
    counts[0, 59] = 5  # Makes a rare class a frequent mistake, though not frequent enough.
    picture = draw_confusion_matrix(Confusion(labels, tuple(map(tuple, counts.tolist()))))
    found = texts(picture)
    assert "11 others" in found
    assert sum(name in found for name in labels) == MAX_CLASSES - 1
    assert str(sum(range(1, 12))) in found
    assert "c59" in found
    assert "c0" not in found


def test_the_same_numbers_give_the_same_bytes() -> None:
    matrix = confusion("no", "yes", "perhaps")
    assert draw_confusion_matrix(matrix) == draw_confusion_matrix(matrix)
    assert draw_loss_curves(FALLING, FALLING[:3]) == draw_loss_curves(FALLING, FALLING[:3])
    assert draw_confusion_matrix(matrix) != draw_confusion_matrix(
        confusion("no", "yes", "perhaps", seed=1)
    )


def test_pictures_carry_no_date_and_no_program() -> None:
    picture = draw_loss_curves(FALLING, [])
    assert b"<dc:date>" not in picture.svg
    assert b"Matplotlib" not in picture.svg
    with Image.open(io.BytesIO(picture.png)) as image:
        assert "Software" not in image.info
