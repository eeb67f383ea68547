"""How quick the viewer is at an image of SA-1B's size with more than 500 masks, in a real Chromium.

`python -m benchmarks.viewer` (half a minute). paint: all masks drawn anew; hover: the mask below the pointer found and
drawn, at places all over the image. Milliseconds, as the page measures them. Results: benchmarks/results/viewer.json.
"""

import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from maskmill.storage.files import at, to_json, write_bytes
from tests.browser.conftest import find_chromium, large_image, serving, sweep, tab
from tests.browser.many import build_many
from tests.parity.machine import machine

RESULTS = Path(__file__).parent / "results" / "viewer.json"


def main() -> None:
    """Print the two medians, and keep them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        made = build_many(large_image(Path(folder, "images")), Path(folder, "build"))
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        with serving(made) as url, tab(browser, 1440, 900) as opened:
            opened.page.goto(url)
            times = sweep(opened.page)
        browser.close()
        masks = made.masks().num_rows
    found = {name: {"median_ms": round(median(values), 1), "times": len(values)} for name, values in times.items()}
    write_bytes(at(RESULTS), to_json({"machine": machine(), "masks": masks, **found}))
    for name, value in found.items():
        print(f"{name}: {value['median_ms']} ms (median of {value['times']})")


if __name__ == "__main__":
    main()
