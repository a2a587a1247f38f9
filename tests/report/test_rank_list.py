import numpy as np
import pytest

from dgnet_fast.report.rank_list import (
    BORDER,
    HEIGHT,
    MARKS,
    WIDTH,
    Ranked,
    RankedRow,
    rank_list,
    tile_origin,
)


def flat(value, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def test_pictures_and_marks_are_where_they_belong():
    marks = ["right", "wrong", "same camera", ""]
    rows = [
        RankedRow(flat(10), "first", [Ranked(flat(20 + k, 64, 16), "0.9", m) for k, m in enumerate(marks)]),
        RankedRow(flat(50), "second", [Ranked(flat(60), "0.8", "right"), Ranked(None, "0.7", "wrong")]),
    ]
    sheet = np.asarray(rank_list(rows))
    for r, row in enumerate(rows):
        pictures = [row.picture, *(result.picture for result in row.results)]
        for column, picture in enumerate(pictures):
            left, top = tile_origin(r, column)
            tile = sheet[top : top + HEIGHT, left : left + WIDTH]
            if picture is not None:
                assert (tile == picture[0, 0]).all(), (r, column)
            else:
                assert 0.5 < (tile == 255).all(axis=2).mean() < 1  # a word on paper
            if column:
                frame = sheet[top - BORDER : top, left - BORDER : left + WIDTH + BORDER]
                assert (frame == MARKS[row.results[column - 1].mark]).all()
    left, top = tile_origin(1, 4)
    assert (
        sheet[top : top + HEIGHT, left : left + WIDTH] == 255
    ).all()  # fewer results than in the first row
    left, top = tile_origin(0, 1)
    caption = sheet[top + HEIGHT + BORDER : top + HEIGHT + BORDER + 14, left : left + WIDTH]
    assert (caption < 128).any()


def test_refuses():
    with pytest.raises(ValueError, match="at least one query"):
        rank_list([])
    with pytest.raises(ValueError, match="mark is 'good'; allowed: 'right', 'wrong', 'same camera', ''"):
        rank_list([RankedRow(flat(1), "", [Ranked(flat(2), "", "good")])])
