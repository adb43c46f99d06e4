"""Position embeddings on another grid: what bilinear stretching is, and what a moved model knows at its start."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagegpt.codec.pictures import Framing
from imagegpt.model.positions import interpolate_positions
from imagegpt.sequence import flatten
from imagegpt.train.finetune_recipe import Head
from imagegpt.train.joint import Joint
from imagegpt.train.labels import SINGLE, Labels
from imagegpt.train.transfer import Pretrained, network_of

VALIDATION = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"
SIDES = st.integers(1, 9)
GRIDS = st.tuples(SIDES, SIDES)


def embeddings(grid, width=3, seed=0):
    return torch.randn(grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


def places(count, old):
    """Where the middles of `count` cells lie among the middles of `old` ones."""
    return (np.arange(count) + 0.5) * old / count - 0.5


def by_hand(wpe_TD, grid, wanted):
    """Each place between its four neighbours, those at the border being continued; for grids that grow."""
    plane = wpe_TD.double().numpy().reshape(*grid, -1)
    found = []
    for row in places(wanted[0], grid[0]).clip(0, grid[0] - 1):
        for column in places(wanted[1], grid[1]).clip(0, grid[1] - 1):
            top, left = int(row), int(column)
            bottom, right = min(top + 1, grid[0] - 1), min(left + 1, grid[1] - 1)
            down, along = row - top, column - left
            upper = (1 - along) * plane[top, left] + along * plane[top, right]
            lower = (1 - along) * plane[bottom, left] + along * plane[bottom, right]
            found.append((1 - down) * upper + down * lower)
    return np.array(found)


@given(GRIDS)
def test_the_same_grid_has_the_same_embeddings(grid):
    wpe = embeddings(grid)
    assert torch.equal(interpolate_positions(wpe, grid, grid), wpe)


@given(GRIDS, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_grids_that_grow_are_linear_between_neighbours(grid, more):
    wanted = (grid[0] + more[0], grid[1] + more[1])
    wpe = embeddings(grid)
    found = interpolate_positions(wpe, grid, wanted)
    assert found.shape == (wanted[0] * wanted[1], 3) and found.dtype == torch.float32 and found.is_contiguous()
    np.testing.assert_allclose(found, by_hand(wpe, grid, wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "wanted"), [((8, 8), (12, 12)), ((8, 8), (24, 16)), ((6, 10), (9, 20)), ((8, 8), (11, 13))]
)
def test_what_is_linear_in_row_and_column_stays_so_away_from_the_borders(grid, wanted):
    rows, columns = np.mgrid[0 : grid[0], 0 : grid[1]].reshape(2, -1)
    wpe = torch.tensor(np.stack([rows, columns, 3 * rows - 2 * columns + 1], 1), dtype=torch.float32)
    found = interpolate_positions(wpe, grid, wanted).numpy().reshape(*wanted, 3)
    row, column = np.meshgrid(places(wanted[0], grid[0]), places(wanted[1], grid[1]), indexing="ij")
    inside = (row >= 0) & (row <= grid[0] - 1) & (column >= 0) & (column <= grid[1] - 1)
    assert inside.sum() > 0.5 * inside.size
    expected = np.stack([row, column, 3 * row - 2 * column + 1], 2)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_rows_and_columns_are_not_exchanged():
    """A picture of 2 x 3 that becomes one of 4 x 3: rows are doubled, columns stay."""
    wpe = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    found = interpolate_positions(wpe, (2, 3), (4, 3)).reshape(4, 3)
    np.testing.assert_allclose(found, [[0, 1, 2], [2.5, 3.5, 4.5], [7.5, 8.5, 9.5], [10, 11, 12]], atol=1e-6)


@given(GRIDS, GRIDS)
def test_what_is_the_same_everywhere_stays_and_nothing_leaves_its_range(grid, wanted):
    found = interpolate_positions(torch.full((grid[0] * grid[1], 2), 0.75), grid, wanted)
    np.testing.assert_allclose(found, np.full((wanted[0] * wanted[1], 2), 0.75), rtol=1e-6)
    wpe = embeddings(grid)
    moved = interpolate_positions(wpe, grid, wanted)
    assert (moved.amax(0) <= wpe.amax(0) + 1e-6).all() and (moved.amin(0) >= wpe.amin(0) - 1e-6).all()


@given(GRIDS, GRIDS)
def test_every_number_of_an_embedding_is_moved_by_itself(grid, wanted):
    wpe = embeddings(grid)
    alone = [interpolate_positions(wpe[:, one : one + 1], grid, wanted) for one in range(3)]
    assert torch.equal(interpolate_positions(wpe, grid, wanted), torch.cat(alone, 1))


def test_half_as_many_are_means_of_their_surroundings():
    """Each is weighed by how near it is, up to two cells away: 1, 3, 3, 1 of 8 along each side."""
    line = torch.arange(8.0)[:, None] ** 2
    found = interpolate_positions(line, (1, 8), (1, 4)).flatten()
    squares = np.arange(8.0) ** 2
    assert found[1].item() == pytest.approx(np.dot([1, 3, 3, 1], squares[1:5]) / 8, rel=1e-5)
    assert found[2].item() == pytest.approx(np.dot([1, 3, 3, 1], squares[3:7]) / 8, rel=1e-5)
    one = torch.zeros(64, 1)
    one[3 * 8 + 3] = 1.0  # seen by the places around it, and lost to none
    shrunk = interpolate_positions(one, (8, 8), (4, 4))
    assert (shrunk > 0).sum() == 4 and shrunk.sum().item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_is_float32(dtype):
    assert interpolate_positions(embeddings((2, 2)).to(dtype), (2, 2), (3, 3)).dtype == torch.float32


@pytest.fixture(scope="module")
def enlarged():
    """24 pictures as they are and enlarged to 48 x 48, as ids of nano's palette."""
    parquet = pytest.importorskip("pyarrow.parquet")
    if not VALIDATION.exists():
        pytest.skip("shared/data is not here")
    cells = parquet.read_table(VALIDATION, columns=["image"]).slice(0, 24).to_pylist()
    pictures = [Image.open(io.BytesIO(cell["image"]["bytes"])).convert("RGB") for cell in cells]
    codec, found = Pretrained.open("nano").codec, {}
    for side in (32, 48):
        sized = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]
        pixels = np.stack([Framing(side, side).apply(picture) for picture in sized])
        found[side] = torch.from_numpy(flatten(codec.encode(pixels)))
    return found


def nats_per_token(ids_BT, side, random=False):
    """Of nano on a grid, before any training."""
    labels = Labels(SINGLE, ("cat", "dog"), np.array([1, 1]), 2)
    network = network_of(Pretrained.open("nano"), Head(), labels, (side, side), 0, torch.device("cpu"))
    assert len(network.notes) == (side != 32)
    wpe_TD = network.model.transformer.wpe.weight
    assert isinstance(network.objective, Joint)
    with torch.no_grad():
        if random:  # as large as they were
            drawn = torch.randn(wpe_TD.shape, generator=torch.Generator().manual_seed(0))
            wpe_TD.copy_(drawn * wpe_TD.std(0) + wpe_TD.mean(0))
        network.model.eval()
        return float(np.mean([network.objective(ids_BT[row : row + 4])[1].mean() for row in range(0, 24, 4)]))


@pytest.mark.slow
def test_a_model_that_is_moved_knows_enlarged_pictures_as_well_as_before(enlarged):
    """No worse than a third above its 32 x 32 value, and far below random positions."""
    before, moved = nats_per_token(enlarged[32], 32), nats_per_token(enlarged[48], 48)
    random = nats_per_token(enlarged[48], 48, random=True)
    assert before == pytest.approx(1.92, abs=0.02)
    assert moved == pytest.approx(1.82, abs=0.02)
    assert moved < 4 / 3 * before
    assert random > 3.0 > moved + 1
