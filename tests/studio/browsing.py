"""The studio in a real browser: the command in a process of its own, pages in fresh contexts, and what they show."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from running import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = Path(os.environ.get("IMAGEGPT_SCREENSHOTS", "out/studio")).resolve()
PATIENCE = 60_000  # milliseconds: machines are busy

# The command, whose drawings take their time while a file is there: else they may be over before they are looked at.
PACED = """
import sys, time
from pathlib import Path
from imagegpt.cli.main import entry
from imagegpt.engine.decode import Decoding

slow, iterate = Path(sys.argv.pop(1)), Decoding.__iter__

def paced(self):
    for position in iterate(self):
        time.sleep(0.015 * slow.exists())
        yield position

Decoding.__iter__ = paced
entry()
"""

# Every frame of the first sample that is shown: from inside of the page, so that none is missed.
WATCH = """
window.shown = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent)?.src;
window.first = () => window.shown(".stage li img");
window.drawn = [], window.before = undefined;
new MutationObserver(() => {
  const source = window.first();
  if (source && source !== (window.drawn.at(-1) ?? window.before)) window.drawn.push(source);
}).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["src"] });
"""
# Squares under the veil that lies over what is drawn anew.
VEILED = """() => {
  const canvas = document.querySelector(".kept canvas"), copy = canvas.cloneNode(), found = [];
  const pen = copy.getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let row = 0; row < canvas.height / 16; row++)
    for (let column = 0; column < canvas.width / 16; column++)
      if (data[4 * ((row * 16 + 4) * canvas.width + column * 16 + 12) + 3]) found.push([row, column]);
  return found;
}"""
# Words that are seen, and how much they stand out from what is behind them: [words, contrast, where].
CONTRASTS = """() => {
  const color = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const own = color(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((x) => x / 255).map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.parentElement, words = node.textContent.trim();
    if (!words || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.closest(":disabled, script, style, [aria-hidden=true], svg")) continue;
    const below = ground(element), above = over(color(getComputedStyle(element).color), below);
    const [low, high] = [light(below), light(above)].sort((a, b) => a - b);
    found.push([words.slice(0, 40), (high + 0.05) / (low + 0.05), element.tagName + "." + element.className]);
  }
  return found;
}"""
# Gradio gives controls that appear their first values once more, some 10 ms later: what is typed by then is lost.
FRAMES = "async () => { for (let i = 0; i < 10; i++) await new Promise(requestAnimationFrame); }"
# Gradio's own, where it shows how far an upload is: it can't close that, nor find it where the upload was faster.
HARMLESS = {"Method not implemented.", "Response"}
PROGRESS = "/upload_progress"
CONTROLS = {"button", "textbox", "checkbox", "radio", "slider", "spinbutton", "combobox", "tab", "link", "application"}


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[tuple[str, int, Path]]:
    """`imagegpt studio` on a port that is free, for sure stopped in the end.

    Args:
        log: where its complaints go; there must be none.
        arguments: more of the command.

    Yields:
        Its address, its process id, and the file that makes it slow; see `PACED`.
    """
    port, slow = free_port(), log.with_name("slow")
    command = [sys.executable, "-c", PACED, str(slow), "studio", "--port", str(port), *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            line = _first_line(process)
            assert f"http://127.0.0.1:{port}" in line, line + log.read_text()
            yield f"http://127.0.0.1:{port}", process.pid, slow
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE / 1000) == 0
        finally:
            process.kill()
            process.communicate()
    assert log.read_text() == ""


def _first_line(process: subprocess.Popen[str]) -> str:
    out: IO[str] | None = process.stdout
    assert out is not None
    return out.readline()


class Visit:
    """A page in a context of its own, and all that goes wrong in it.

    Args:
        browser: Playwright's.
        address: of the studio.
        dark: in the dark theme.
        size: width and height of the window.
    """

    def __init__(self, browser: Any, address: str, dark: bool = False, size: tuple[int, int] = (1400, 1000)) -> None:
        self.wrong: list[str] = []
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))
        self.context.on("request", self._follow)
        self.page.add_init_script(WATCH)
        self.page.goto(address + ("/?__theme=dark" if dark else ""))
        self.ready()

    def _listen(self, message: Any) -> None:
        harmless = message.text in HARMLESS or PROGRESS in message.location["url"]
        if message.type in ("error", "warning") and not harmless:
            self.wrong.append(f"console: {message.text} {message.location}")

    def _follow(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.wrong.append(f"asked another machine: {request.url}")

    # ---- what a person does ----
    def ready(self) -> None:
        """Wait for the first picture to be seen as the model sees it."""
        self.wait("document.querySelector('.kept .board img')?.src")

    def wait(self, condition: str) -> None:
        """Until something in JavaScript holds."""
        self.page.wait_for_function(condition)

    def seen(self, selector: str) -> Any:
        """Elements that are seen, the first of which appears before long."""
        found = self.page.locator(selector).locator("visible=true")
        found.first.wait_for()
        return found

    def button(self, name: str) -> Any:
        """The button of this name that is seen."""
        return self.page.get_by_role("button", name=name, exact=True).locator("visible=true")

    def tab(self, name: str) -> None:
        """Open a tab, wherever it hides where the window is narrow."""
        found = self.page.get_by_role("tab", name=name, exact=True).locator("visible=true")
        if not found.count():
            self.seen(".overflow-menu > button").click()
            found = self.seen(f".overflow-dropdown button:text-is('{name}')")
        found.click()
        self.seen(".tabitem")

    def unfold(self) -> None:
        """Show what lies under "How to draw"."""
        button = self.seen("button.label-wrap")
        if "open" not in button.get_attribute("class"):
            button.click()

    def set(self, label: str, value: float) -> None:
        """Type a number into a control."""
        field = self.seen(f"input[aria-label='number input for {label}'], input[aria-label='{label}']")
        self.page.evaluate(FRAMES)
        field.fill(str(value))
        field.press("Tab")

    def example(self, name: str) -> None:
        """Click an example."""
        self.page.get_by_role("button", name=name).click()

    def upload(self, path: Path | str) -> None:
        """Choose another picture."""
        self.page.locator("input[type=file][accept='image/*']").set_input_files(path)

    def draw(self, verb: str = "Complete") -> None:
        """Start a drawing."""
        self.page.evaluate("() => { window.drawn = []; window.before = window.first(); }")
        self.button(verb).click()

    def watch(self, count: int) -> None:
        """Until so many frames were drawn."""
        self.wait(f"window.drawn.length >= {count}")

    def finish(self, verb: str = "Complete") -> str:
        """Wait for the end of a drawing; what is said then."""
        self.watch(1)
        self.seen(".samples-status:text('Done in')")
        self.wait_for_button(verb)
        return self.status()

    def wait_for_button(self, verb: str) -> None:
        """Until a drawing may be started again."""
        self.seen(f"button.primary:enabled:text('{verb}')")

    def download(self, name: str) -> Image.Image:
        """A file that is offered, as it arrives."""
        with self.page.expect_download() as coming:
            self.seen(f"a[download='{name}']").click()
        return Image.open(coming.value.path())

    # ---- what a person sees ----
    def status(self) -> str:
        """What is said of the drawing."""
        return self.page.locator(".samples-status:visible").inner_text()

    def sources(self, where: str = ".stage") -> list[str]:
        """Pictures within an element, as addresses."""
        return self.page.locator(f"{where}:visible img").evaluate_all("found => found.map((each) => each.src)")

    def pictures(self, where: str = ".stage") -> list[NDArray[np.uint8]]:
        """Pictures within an element."""
        return [pixels(source) for source in self.sources(where)]

    def frames(self) -> list[NDArray[np.uint8]]:
        """All that the first sample looked like since its drawing began."""
        return [pixels(source) for source in self.page.evaluate("window.drawn")]

    def problem(self) -> str:
        """The words for what went wrong."""
        return self.seen(".problem").inner_text()

    def veiled(self) -> set[tuple[int, int]]:
        """Squares of the picture that are to be drawn anew, as (row, column)."""
        return set(map(tuple, self.page.evaluate(VEILED)))

    @contextmanager
    def changing(self, where: str) -> Iterator[None]:
        """Wait until the picture of an element is another than before."""
        before = self.sources(where)[0]
        yield
        self.page.wait_for_function("([where, before]) => window.shown(where + ' img') !== before", arg=[where, before])

    def readout(self, where: str) -> str:
        """The numbers under the cursor."""
        return self.seen(f"{where} .readout").inner_text()

    def faint(self, least: float = 4.5) -> list[tuple[str, float, str]]:
        """Words that hardly stand out from what is behind them."""
        found = self.page.evaluate(CONTRASTS)
        assert len(found) > 10
        return [each for each in found if each[1] < least]

    def nameless(self) -> list[str]:
        """Controls that nothing names to those who do not see them."""
        protocol = self.context.new_cdp_session(self.page)
        nodes = protocol.send("Accessibility.getFullAXTree")["nodes"]
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(controls) > 10
        return [
            protocol.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]["localName"]
            for node in controls
            if not node["name"]["value"].strip()
        ]

    def center(self, where: str, row: int, column: int, side: int = 32) -> tuple[float, float]:
        """Where a square of a board lies in the window."""
        board = self.page.locator(f"{where} .board:visible").first
        board.scroll_into_view_if_needed()
        box = board.bounding_box()
        return box["x"] + box["width"] * (column + 0.5) / side, box["y"] + box["height"] * (row + 0.5) / side

    def shot(self, name: str) -> None:
        """Keep what is seen."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def pixels(source: str) -> NDArray[np.uint8]:
    """The picture of a data URI."""
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64", head
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def write_bomb(path: Path, side: int = 30_000) -> Path:
    """A PNG of a few megabytes that unpacks to gigabytes; it is never in memory as a whole."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + side)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)))
        for _ in range(side):
            if data := packer.compress(row):
                file.write(chunk(b"IDAT", data))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))
    return path
