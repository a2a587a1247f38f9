import numpy as np
import pytest
import torch

from dgnet_fast.report.grid import cell_origin, image_grid

ROWS, COLUMNS, HEIGHT, WIDTH = 2, 3, 64, 32


@pytest.fixture
def tiles():
    random = np.random.RandomState(0)
    shapes = (ROWS,), (COLUMNS,), (ROWS, COLUMNS)
    return [random.randint(0, 256, size=(*s, 3, HEIGHT, WIDTH)).astype(np.uint8) for s in shapes]


@pytest.mark.parametrize("scale, labels", [(1, False), (3, False), (2, True)])
def test_every_picture_is_at_its_place(tiles, scale, labels):
    structures, appearances, cells = tiles
    texts = {"row_labels": list("ab"), "column_labels": ["one", "two", "three"]} if labels else {}
    grid = np.asarray(image_grid(structures, torch.from_numpy(appearances), cells, scale=scale, **texts))
    for row in range(ROWS + 1):
        for column in range(COLUMNS + 1):
            left, top = cell_origin(row, column, HEIGHT, WIDTH, scale=scale, labels=labels)
            shown = grid[top : top + HEIGHT * scale, left : left + WIDTH * scale]
            if row and column:
                expected = cells[row - 1, column - 1]
            elif row or column:
                expected = structures[row - 1] if row else appearances[column - 1]
            else:
                assert (shown == 255).all()  # the corner
                continue
            enlarged = expected.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
            np.testing.assert_array_equal(shown, enlarged)


def test_small_pictures_are_enlarged_and_captions_written(tiles):
    grid = image_grid(*tiles)
    assert grid.size == image_grid(*tiles, scale=2).size != image_grid(*tiles, scale=1).size
    left, top = cell_origin(0, 0, HEIGHT, WIDTH, scale=2)
    pixels = np.asarray(grid)
    assert pixels[:top].min() < 100 and pixels[:, :left].min() < 100
    plain, labelled = image_grid(*tiles, scale=1), image_grid(*tiles, scale=1, row_labels=["a", "b"])
    assert labelled.size[0] > plain.size[0]


def test_mistakes_are_named(tiles):
    structures, appearances, cells = tiles
    with pytest.raises(ValueError, match="structures are float32"):
        image_grid(structures.astype(np.float32), appearances, cells)
    with pytest.raises(ValueError, match=r"cells have shape \(3, 2, .*expected \(2, 3,"):
        image_grid(structures, appearances, cells.swapaxes(0, 1))
    with pytest.raises(ValueError, match="column_labels has 1 entries for 3"):
        image_grid(structures, appearances, cells, column_labels=["x"])
    with pytest.raises(ValueError, match="scale is 0"):
        image_grid(structures, appearances, cells, scale=0)
