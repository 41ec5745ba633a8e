"""How soon a report can be used: ``python benchmarks/page.py REPORT.html [--times 5]``.

Opens the page in Chromium, as a reader would, in a window of 1280 x 900. Prints its size, milliseconds until it is
loaded, until its slider, moved at once, has changed the page and been painted, and what the browser complained of.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median
from typing import Any

MOVED = """
const done = arguments[0], slider = document.querySelector('input[type=range]');
const before = document.body.innerText;
slider.value = Number(slider.min) + 0.3 * (slider.max - slider.min);
slider.dispatchEvent(new Event('input', {bubbles: true}));
requestAnimationFrame(() => setTimeout(() => {
  const loaded = performance.getEntriesByType('navigation')[0].loadEventEnd;
  done([loaded, performance.now(), before !== document.body.innerText]);
}));
"""


def chromium() -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or ""
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    browser = chromium()
    browser.set_window_size(1280, 900)
    found = []
    for _ in range(asked.times):
        browser.get("about:blank")
        browser.get(asked.report.resolve().as_uri())
        found.append(browser.execute_async_script(MOVED))
    complaints = browser.get_log("browser")
    browser.quit()
    loaded, used = (median(row[place] for row in found) for place in (0, 1))
    print(f"{asked.report.stat().st_size / 2**20:.1f} MiB; loaded after {loaded:.0f} ms, used after {used:.0f} ms")
    print(f"the slider changed the page: {all(row[2] for row in found)}; complaints: {complaints or 'none'}")


if __name__ == "__main__":
    main()
