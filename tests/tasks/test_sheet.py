from __future__ import annotations

from PIL import Image

from vision_ssm.tasks.sheet import draw_sheet


def squares(*colours: str, side: int = 8) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in colours]


def test_small_pictures_are_enlarged_in_lines_of_their_names() -> None:
    drawn = draw_sheet([("night", squares("black", "blue")), ("day", squares("white", "red", "lime"))], columns=2)
    assert drawn.height == 3 * (64 + 2) + 2
    left = drawn.width - 2 * (64 + 2)
    middle = [[drawn.getpixel((left + 32 + 66 * column, 34 + 66 * row)) for column in (0, 1)] for row in (0, 1, 2)]
    black, blue, white, red, lime = (0, 0, 0), (0, 0, 255), (255, 255, 255), (255, 0, 0), (0, 255, 0)
    assert middle == [[black, blue], [white, red], [lime, white]]
    assert left > 20  # of names


def test_large_pictures_stay_as_they_are_and_no_name_takes_no_room() -> None:
    assert draw_sheet([("", squares("red", side=100))]).size == (104, 104)
