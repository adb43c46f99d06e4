"""How long a person waits in the studio: from a click to the first new row, and to the whole picture.

    python benchmarks/studio.py --repeats 5

Runs `imagegpt studio`, completes one picture after another in a real Chromium, and in turn the same completions by the
pipeline alone, in a process of its own: what the page adds. Prints one JSON line last. With --screenshot FILE it leaves
a picture of the page.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import cyclopts

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Runs in the page: what was first to be seen, in milliseconds after the click.
WATCH = """() => {
  window.seen = {};
  const status = () => document.querySelector(".stage .samples-status").textContent;
  const first = () => document.querySelector(".stage li img")?.src;
  const before = first(), began = performance.now();
  const look = () => {
    if (!window.seen.row && first() && first() !== before && status().includes("drawn")) {
      window.seen.row = performance.now() - began;
    }
    if (status().includes("Done") && window.seen.row) window.seen.whole = performance.now() - began;
    else requestAnimationFrame(look);
  };
  // The tabs are called so too.
  [...document.querySelectorAll("button.primary")].find((button) => button.textContent.trim() === "Complete").click();
  requestAnimationFrame(look);
}"""
# In a process of its own: for each number that comes in, a completion, and the seconds that it took.
ALONE = """
import sys, time
from imagegpt import ImageGPT
model = ImageGPT.from_pretrained(sys.argv[1])
model.backend
for line in sys.stdin:
    began, first = time.perf_counter(), None
    for result in model.stream(sys.argv[2], num_samples=int(line), seed=0):
        first = first or time.perf_counter() - began
    print(first, time.perf_counter() - began, flush=True)
"""
PICTURE = Path(__file__).parents[1] / "src/imagegpt/studio/assets/chelsea.jpg"


@contextmanager
def studio(model: str) -> Iterator[str]:
    """The page's address while it is served by the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "imagegpt", "studio", "--model", model, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait()


def main(*, model: str = "nano", samples: int = 1, repeats: int = 5, screenshot: Path | None = None) -> None:
    """Measure, and print one JSON line.

    Args:
        model: which model.
        samples: pictures that are completed at once.
        repeats: completions; one more goes before them.
        screenshot: where a picture of the page goes.
    """
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser_path, "There is no Chromium here."
    command = [sys.executable, "-c", ALONE, model, str(PICTURE)]
    alone = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert alone.stdin and alone.stdout
    rows, wholes, bare_rows, bare_wholes = [], [], [], []
    with studio(model) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address)
        page.wait_for_selector(".kept .board img")
        page.get_by_text("How to draw").first.click()
        page.get_by_label("number input for Pictures").first.fill(str(samples))
        page.keyboard.press("Tab")
        page.wait_for_timeout(1000)
        for repeat in range(repeats + 1):
            page.evaluate(WATCH)
            page.wait_for_function("window.seen.whole", timeout=60_000)
            page.wait_for_timeout(1500)  # the files for downloading
            alone.stdin.write(f"{samples}\n")
            alone.stdin.flush()
            bare = [1000 * float(part) for part in alone.stdout.readline().split()]
            if repeat:
                seen = page.evaluate("window.seen")
                rows.append(seen["row"])
                wholes.append(seen["whole"])
                bare_rows.append(bare[0])
                bare_wholes.append(bare[1])
        if screenshot is not None:
            page.get_by_text("How to draw").first.click()
            page.wait_for_timeout(500)
            page.screenshot(path=screenshot)
        browser.close()
    alone.stdin.close()
    alone.wait()
    told = {"first_row_ms": rows, "picture_ms": wholes, "pipeline_first_row_ms": bare_rows, "pipeline_ms": bare_wholes}
    record = {"benchmark": "studio", "model": model, "samples": samples, "repeats": repeats}
    record |= {name: round(median(values)) for name, values in told.items()}
    record |= {"worst_first_row_ms": round(max(rows)), "worst_picture_ms": round(max(wholes))}
    print(json.dumps(record | {"ratio": round(median(wholes) / median(bare_wholes), 2)}))


if __name__ == "__main__":
    cyclopts.run(main)
