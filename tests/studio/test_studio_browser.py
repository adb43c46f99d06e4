"""The studio in a real browser: what a person does and sees; pictures of it all go to out/studio."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from browsing import CHROMIUM, FLAGS, PATIENCE, VEILED, Visit, serving, write_bomb
from PIL import Image

from imagegpt.pipeline import ImageGPT

if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
for package in ("playwright", "gradio"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

TABS = ["Complete", "Sample", "What the model sees", "Surprise", "Attention", "Features", "Models"]
ASSETS = Path(__file__).parents[2] / "src/imagegpt/studio/assets"
CAT, ROCKET = ASSETS / "chelsea.jpg", ASSETS / "rocket.jpg"
SIDE = 32
UNPAINTED = "Paint over the part of the picture that the model shall draw anew."

Open = Callable[..., Visit]


# What has the focus: its name, and whether that can be seen.
FOCUSED = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const told = [at.getAttribute("aria-label"), at.labels?.[0]?.innerText, at.innerText, at.querySelector("img")?.alt];
  return [(told.find((each) => each) || "").trim(), style.outlineStyle !== "none" || style.boxShadow !== "none"];
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_folder) -> Iterator[tuple[str, int, Path]]:
    """The studio's address, its process, and a file that makes it slow."""
    log = tmp_path_factory.mktemp("studio") / "errors.txt"
    with serving(log, "--models", str(tiny_folder.parent)) as found:
        yield found


@pytest.fixture
def slowly(served) -> Callable[[], AbstractContextManager[None]]:
    """A context in which a row takes half a second: whoever stands still for a while misses a few, and not all."""

    @contextmanager
    def slow() -> Iterator[None]:
        served[2].touch()
        try:
            yield
        finally:
            served[2].unlink()

    return slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(served, browser) -> Iterator[Open]:
    """Opens pages, each in a fresh context; in the end nothing must have gone wrong in any."""
    visits: list[Visit] = []

    def open_page(**options: Any) -> Visit:
        visits.append(Visit(browser, served[0], **options))
        return visits[-1]

    yield open_page
    for each in visits:
        each.context.close()
    assert [each.wrong for each in visits] == [[]] * len(visits)


@pytest.fixture(scope="module")
def nano() -> ImageGPT:
    return ImageGPT.from_pretrained("nano")


# ---- drawing ----
def test_complete(visit, nano, slowly):
    """Rows appear from the top under what is kept; the pictures are the pipeline's, and they are handed out."""
    page = visit()
    page.unfold()
    page.set("Seed", 7)
    with slowly():
        page.draw()
        page.watch(3)
    assert re.fullmatch(r"Done in [\d.]+ s\. Seed 7\.", page.finish())
    frames, kept = page.frames(), page.pictures(".kept")[0]
    assert len(frames) >= 3
    half = SIDE // 2
    rows = []
    for frame in frames:
        assert (frame[:half] == kept[:half]).all()
        as_last = (frame == frames[-1]).all((1, 2))
        rows.append(int(np.argmin(as_last)) if not as_last.all() else SIDE)
        assert not as_last[rows[-1] + 1 :].any()  # what comes later is not there yet
    assert rows == sorted(rows) and rows[-1] == SIDE and len(set(rows)) >= 3

    expected = nano.complete(CAT, num_samples=4, keep=0.5, seed=7).images[0]
    shown = page.pictures()
    assert len(shown) == 4
    for seen, image in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(seen, np.array(image))

    assert page.download("sheet.png").size[0] > page.download("sample-1.png").size[0] >= SIDE
    single = page.download("sample-1.png").convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.array(single), shown[0])
    assert page.download("drawing.gif").n_frames >= 3  # pyright: ignore[reportAttributeAccessIssue]
    page.shot("complete")

    page.draw()
    page.finish()
    assert all((a == b).all() for a, b in zip(shown, page.pictures(), strict=True))


def test_stop(visit, slowly):
    """What is drawn by then stays, is handed out, and is gone on from."""
    page = visit()
    page.unfold()
    page.set("Pictures", 16)
    page.set("Part that is kept", 0.1)
    with slowly():
        page.draw()
        page.watch(4)
        page.button("Stop").click()
        page.wait_for_button("Complete")
    status, count = page.status(), len(page.frames())
    assert re.match(r"\d\d% drawn\.", status), status
    assert page.download("sample-16.png").size[0] >= SIDE
    page.page.wait_for_timeout(500)
    assert (page.status(), len(page.frames())) == (status, count)
    assert page.button("Stop").is_disabled()
    page.shot("stopped")

    stopped = page.pictures()[2]
    page.seen(".stage li button").nth(2).click()
    with page.changing(".kept"):
        page.button("Continue from the picked one").click()
    drawn = np.flatnonzero((stopped == 200).all((1, 2)))[0]
    first, kept = min(page.veiled())[0], page.pictures(".kept")[0]
    assert drawn <= first < SIDE  # a row that was on its way to the page is kept too
    assert page.veiled() == {(row, column) for row in range(first, SIDE) for column in range(SIDE)}
    np.testing.assert_array_equal(kept[:drawn], stopped[:drawn])
    page.set("Pictures", 1)
    page.draw()
    page.finish()
    result = page.pictures()[0]
    np.testing.assert_array_equal(result[:first], kept[:first])
    assert not (result == 200).all((1, 2)).any()


def test_continue(visit):
    """From a finished picture, of which the part that the slider says is kept."""
    page = visit()
    assert not page.button("Continue from the picked one").count()  # there is none yet
    page.draw()
    page.finish()
    page.button("Continue from the picked one").click()
    assert "Pick a picture first" in page.problem()
    chosen = page.pictures()[3]
    page.seen(".stage li button").nth(3).press("Enter")
    assert page.seen(".stage li button[aria-pressed=true]").count() == 1
    with page.changing(".kept"):
        page.button("Continue from the picked one").click()
    assert not page.page.locator(".problem").count()
    assert min(page.veiled()) == (SIDE // 2, 0)
    page.draw()
    page.finish()
    for each in page.pictures():
        np.testing.assert_array_equal(each[: SIDE // 2], chosen[: SIDE // 2])
    page.shot("continued")


def test_sample(visit, nano, slowly):
    page = visit()
    page.tab("Sample")
    page.unfold()
    page.set("Pictures", 2)
    page.set("Seed", 3)
    with slowly():
        page.draw("Sample")
        page.watch(3)
    page.finish("Sample")
    for seen, image in zip(page.pictures(), nano.sample(2, seed=3).images[0], strict=True):
        np.testing.assert_array_equal(seen, np.array(image))
    page.shot("sample")
    page.set("Pictures", 16)
    with slowly():
        page.draw("Sample")
        page.watch(3)
        page.button("Stop").click()
        page.wait_for_button("Sample")
    status = page.status()
    page.page.wait_for_timeout(500)
    assert page.status() == status and "Done" not in status
    assert page.download("sheet.png").size[0] >= SIDE


# ---- painting a mask ----
def stroke(page: Visit, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw a line with the mouse, from the middle of a square to that of another."""
    mouse = page.page.mouse
    mouse.move(*page.center(".kept", *start))
    mouse.down()
    mouse.move(*page.center(".kept", *end), steps=4)
    mouse.up()


def test_mask_by_mouse(visit, slowly):
    page = visit()
    page.page.get_by_label("All but what I paint over").check()
    page.button("Complete").click()
    assert page.problem() == UNPAINTED
    page.shot("nothing-painted")
    page.set("Width of the brush", 1)
    stroke(page, (10, 10), (10, 20))
    assert page.veiled() == {(10, column) for column in range(10, 21)}
    stroke(page, (10, 15), (10, 16))  # what is painted already is taken away
    assert page.veiled() == {(10, column) for column in range(10, 21)} - {(10, 15), (10, 16)}
    page.button("Clear").click()
    page.wait(f"!({VEILED})().length")
    page.set("Width of the brush", 5)
    stroke(page, (5, 5), (5, 5))
    assert page.veiled() == {(row, column) for row in range(3, 8) for column in range(3, 8)}
    stroke(page, (5, 5), (5, 5))
    assert page.veiled() == set()
    page.button("Complete").click()
    assert page.problem() == UNPAINTED  # also where all was taken away again
    stroke(page, (5, 5), (12, 20))
    page.set("Histories", 2)
    painted, kept = page.veiled(), page.pictures(".kept")[0]
    with slowly():
        page.draw()
        page.watch(3)
    page.finish()
    assert not page.page.locator(".problem").count()
    changed = {
        (int(row), int(column)) for each in page.pictures() for row, column in np.argwhere((each != kept).any(2))
    }
    assert changed and changed <= painted
    page.shot("mask")


def test_mask_by_keyboard(visit):
    page = visit()
    page.page.get_by_label("All but what I paint over").check()
    page.seen("label:has-text('Width of the brush')")
    board = page.seen(".kept .board")
    board.focus()
    for key in ["ArrowRight"] + ["ArrowDown"] * 20 + ["ArrowRight"] * 9 + ["ArrowLeft"] * 2:
        board.press(key)
    assert page.readout(".kept") == "row 21, column 8 · is kept"
    board.press(" ")
    assert page.readout(".kept") == "row 21, column 8 · is painted anew"
    painted = {(row, column) for row in range(19, 22) for column in range(6, 9)}
    assert page.veiled() == painted
    board.press("ArrowUp")
    board.press("Enter")  # erases, around the square above
    assert page.veiled() == {(21, column) for column in range(6, 9)}
    kept = page.pictures(".kept")[0]
    page.unfold()
    page.set("Pictures", 1)
    page.set("Temperature", 2)
    button = page.button("Complete")
    button.focus()
    button.press("Enter")
    page.finish()
    changed = {tuple(place) for place in np.argwhere((page.pictures()[0] != kept).any(2)).tolist()}
    assert changed and changed <= page.veiled()


# ---- looking inside ----
def test_seen(visit, nano):
    page = visit()
    page.tab("What the model sees")
    page.seen(".boards figure:nth-child(3) img")
    seen = nano.decode(nano.encode(CAT))[0]
    np.testing.assert_array_equal(page.pictures(".boards")[2], np.array(seen))
    assert f"32 x 32 ids of {len(nano.codec)}" in page.page.locator(".tabitem:visible").inner_text()
    assert page.seen(".palette img").count() == 1
    with page.changing(".boards"):
        page.example("rocket")
    np.testing.assert_array_equal(page.pictures(".boards")[2], np.array(nano.decode(nano.encode(ROCKET))[0]))
    page.shot("seen")


def test_surprise(visit, nano):
    """The numbers under the pointer and the keyboard's cursor are the pipeline's."""
    page = visit()
    page.tab("Surprise")
    page.button("Show the surprise").click()
    page.seen(".maps figure:nth-child(3)")
    scores = nano.score(CAT)
    surprise, entropy = (each.reshape(SIDE, SIDE) for each in (scores.surprise, scores.entropy))

    def told(row: int, column: int) -> str:
        numbers = f"surprise {surprise[row, column]:.2f} nats · entropy {entropy[row, column]:.2f} nats"
        return f"row {row + 1}, column {column + 1} · {numbers}"

    page.page.mouse.move(*page.center(".maps", 5, 10))
    assert page.readout(".maps") == told(5, 10)
    board = page.seen(".maps .board").nth(1)
    board.focus()
    board.press("ArrowDown")
    assert page.readout(".maps") == told(6, 10)
    page.seen(".maps .board").first.dispatch_event("pointerleave")  # as when the page moves under the mouse
    assert page.readout(".maps") == told(6, 10)
    page.shot("surprise")
    table = page.page.locator(".told:visible").inner_text()
    assert f"{scores.nats_per_token[0]:.4f}" in table
    row, column = divmod(int(scores.surprise[0].argmax()), SIDE)
    assert f"row {row + 1}, column {column + 1}: {surprise[row, column]:.2f} nats" in table


def test_attention(visit, nano):
    page = visit()
    page.tab("Attention")
    page.seen(".pick-a-pixel img")
    page.page.mouse.click(*page.center(".pick-a-pixel", 20, 10))
    assert page.seen(".heads figcaption").all_inner_texts() == ["mean of the heads", "head 1", "head 2", "head 3"]
    found = nano.attention(CAT, (20, 10))

    def told(layer: int, row: int, column: int) -> str:
        weights = 100 * np.asarray(found.weights[layer - 1])[found.heads[layer - 1]][:, row, column]
        numbers = [f"mean of the heads {weights.mean():.2f} %"]
        numbers += [f"head {number} {weight:.2f} %" for number, weight in enumerate(weights, 1)]
        return " · ".join([f"row {row + 1}, column {column + 1}", *numbers])

    def point_at(row: int, column: int) -> str:
        page.page.mouse.move(*page.center(".heads", row, column))
        return page.readout(".heads")

    assert point_at(19, 10) == told(4, 19, 10)
    for row, column in [(20, 10), (20, 11), (31, 31)]:
        assert point_at(row, column).count(" 0.00 %") == 4
    assert "row 21, column 11" in page.page.locator(".tabitem:visible").inner_text()
    page.shot("attention")
    with page.changing(".heads"):
        page.set("Layer", 8)
    assert point_at(19, 10) == told(8, 19, 10)
    with page.changing(".heads"):
        page.seen("input[aria-label='range slider for Layer']").press("ArrowLeft")
    assert point_at(19, 10) == told(7, 19, 10)
    board = page.seen(".pick-a-pixel .board")
    board.focus()
    board.press("ArrowUp")
    with page.changing(".heads"):
        board.press("Enter")
    found = nano.attention(CAT, (19, 10))
    assert point_at(18, 10) == told(7, 18, 10)


def test_features(visit, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate([CAT, ROCKET] * 3):
        Image.open(path).rotate(30 * number).resize((64, 64)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    page = visit()
    page.tab("Features")
    page.button("Find neighbours").click()
    assert page.problem() == "Choose pictures to look among: a folder of yours, or what is offered."
    page.page.locator("input[webkitdirectory]").set_input_files(folder)
    page.seen(".file-preview")
    page.button("Find neighbours").click()
    page.seen("svg.plane")
    assert not page.page.locator(".problem").count()
    told = page.page.locator(".tabitem:visible").inner_text()
    assert "6 of 7 pictures; 1 can't be read: " in told and "broken.png" in told
    assert "studio-" not in told  # the server's folders are nobody's business
    captions = page.seen(".near figcaption").all_inner_texts()
    assert len(captions) == 6 and captions[0].split()[0] == "0.png"
    assert page.seen("svg.plane image").count() == 6
    page.shot("features")
    page.page.get_by_label("t-SNE").check()
    page.button("Find neighbours").click()
    page.seen("svg.plane[aria-label*='t-SNE']")
    page.shot("features-tsne")


def test_models(visit, tiny_folder):
    page = visit()
    page.tab("Models")
    page.button("What is it?").click()
    facts = page.seen(".told").inner_text()
    assert "8 layers of width 192" in facts and "free memory" in facts
    page.shot("models")
    field = page.page.get_by_role("tabpanel").get_by_label("Model", exact=True)
    outside = str(tiny_folder / "../..")
    for name, ask in [("/etc", "Use it"), (outside, "What is it?"), ("openai/imagegpt-small", "Use it")]:
        field.fill(name)
        field.press("Enter")
        page.button(ask).click()
        page.page.get_by_text(f"There is no model {name!r}").wait_for()
        assert page.seen(".problem").count() == 1
    page.shot("models-refused")
    field.fill(str(tiny_folder))
    field.press("Enter")
    page.button("Use it").click()
    assert page.seen("p[role=status]:has-text('is chosen')").inner_text() == f"{tiny_folder} is chosen."
    assert not page.page.locator(".problem").count()
    page.tab("What the model sees")
    page.seen("p:has-text('8 x 8 ids of 16')")
    page.tab("Attention")
    assert page.seen("input[aria-label='range slider for Layer']").get_attribute("max") == "2"
    assert not page.page.locator(".problem").count()
    page.tab("Complete")
    page.draw()
    page.finish()
    assert page.pictures()[0].shape == (8, 8, 3)


# ---- what goes wrong ----
def test_wrong_pictures(visit, tmp_path):
    """Each is told beside the picture, and the next good one is seen."""
    page = visit()
    text, empty, large = (tmp_path / name for name in ("text.png", "empty.png", "large.png"))
    text.write_text("I am a text.")
    empty.touch()
    large.write_bytes(bytes((20 << 20) + 1))
    bomb = write_bomb(tmp_path / "bomb.png")
    assert bomb.stat().st_size < 8 << 20
    for path, words in [
        (text, "text.png is not a picture"),
        (bomb, "too many pixels"),
        (empty, "empty.png"),
        (large, "larger than 20 MiB"),
    ]:
        page.upload(path)
        page.seen(f".about-photo .problem:has-text('{words}')")
        assert "studio-" not in page.problem()
        page.shot(f"wrong-{path.stem}")
    with page.changing(".kept"):
        page.upload(ROCKET)
    assert not page.page.locator(".problem").count()


def test_two_users(visit, nano, slowly):
    """Both see theirs being drawn at the same time, and nothing of each other's."""
    pages = [visit(), visit()]
    with pages[1].changing(".kept"):
        pages[1].example("rocket")
    for seed, page in enumerate(pages):
        page.unfold()
        page.set("Part that is kept", 0.1)
        page.set("Pictures", 2)
        page.set("Seed", seed)
    with slowly():
        for page in pages:
            page.draw()
        for page in pages:
            page.watch(3)
        assert not any("Done" in page.status() for page in pages)
    for page in pages:
        page.finish()
    for seed, (page, path) in enumerate(zip(pages, [CAT, ROCKET], strict=True)):
        expected = nano.complete(path, num_samples=2, keep=0.1, seed=seed).images[0]
        for seen, image in zip(page.pictures(), expected, strict=True):
            np.testing.assert_array_equal(seen, np.array(image))
    pages[0].seen(".stage li button").nth(1).click()
    pages[0].seen(".stage li button[aria-pressed=true]")
    assert not pages[1].page.locator(".stage li button[aria-pressed=true]").count()


def test_reload(visit, served):
    """Who leaves while pictures are drawn leaves no work behind."""
    page, server = visit(), psutil.Process(served[1])
    page.unfold()
    page.set("Pictures", 16)
    page.page.get_by_label("All but what I paint over").check()
    page.set("Histories", 8)
    stroke(page, (1, 1), (30, 1))
    page.draw()
    page.watch(2)
    until = time.monotonic() + PATIENCE / 1000
    while (drawing := busy(server)) <= 0.1:  # less than a core where others want them too
        assert time.monotonic() < until
    page.page.reload()
    page.ready()
    page.wrong.clear()  # of what was left in the middle
    until = time.monotonic() + 30  # the drawing takes a minute, or several where a row of it takes this long
    while busy(server) > drawing / 4:
        assert time.monotonic() < until
    page.draw()
    page.finish()


def busy(process: psutil.Process) -> float:
    """Cores that a process takes at the moment."""
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    return (sum(process.cpu_times()[:2]) - before) / 0.5


# ---- how it looks ----
@pytest.mark.parametrize("name", ["light", "dark", "narrow"])
def test_looks(visit, tmp_path, name):
    """On every tab: all is named, all words can be read, and nothing sticks out of the window."""
    page = visit(dark=name == "dark", size=(400, 800) if name == "narrow" else (1400, 1000))
    for number, path in enumerate([CAT, ROCKET] * 4):
        Image.open(path).rotate(20 * number).resize((64, 64)).save(tmp_path / f"{number}.png")

    def look(tab: str) -> None:
        page.page.mouse.move(0, 0)
        page.page.wait_for_timeout(200)  # colours fade in
        page.shot(f"{name}-{tab.split()[0].lower()}")
        assert page.nameless() == []
        assert page.page.locator("img:not([alt])").count() == 0
        assert page.faint() == []
        wide = page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1]

    page.unfold()
    page.button("Complete").click()
    page.finish()
    page.seen("a[download='sheet.png']")
    page.seen(".stage li button").first.click()
    look("Complete")
    page.tab("Sample")
    look("Sample")
    page.tab("What the model sees")
    page.seen(".palette img")
    look("What the model sees")
    page.tab("Surprise")
    page.button("Show the surprise").click()
    page.seen(".told")
    look("Surprise")
    page.tab("Attention")
    page.page.mouse.click(*page.center(".pick-a-pixel", 20, 10))
    page.seen(".likely")
    look("Attention")
    page.tab("Features")
    page.page.locator("input[webkitdirectory]").set_input_files(tmp_path)
    page.seen(".file-preview")
    page.button("Find neighbours").click()
    page.seen("svg.plane")
    look("Features")
    page.tab("Models")
    page.button("What is it?").click()
    page.seen(".told")
    look("Models")


def test_keys(visit):
    """Tab reaches all that matters, and where one is can be seen."""
    page = visit()
    page.draw()
    page.finish()
    page.page.mouse.click(5, 5)
    reached = []
    for _ in range(40):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate(FOCUSED))
    names = [name for name, _ in reached]
    board = "The picture as the model sees it."
    for name in ["Model", "rocket", "Complete", "The upper part", board, "Complete", "Sample 1"]:  # in this order
        names = names[next(at for at, told in enumerate(names) if told.startswith(name)) + 1 :]
    assert all(marked for name, marked in reached if name.startswith(("Complete", "Sample 1", board)))
