"""Take the pictures of the report, the dashboard and the terminal: ``python docs/make_screenshots.py [--storage URL]``.

Shows the experiment ``quickstart`` (``vispco run studies/quickstart.yaml``) in headless Chromium (Debian: ``apt-get
install chromium chromium-driver``). The terminal's picture is drawn by rich, from what the command prints to a terminal
of 90 columns.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import os
import pty
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text
from selenium import webdriver
from vispco.dashboards.optuna.launcher import listen
from vispco.dashboards.report import write_report

from vispco.storage.store import Store, open_store

FOLDER = Path(__file__).parent / "screenshots"
EXPERIMENT = "quickstart"
COLORS = 250  # of a picture's palette: half the bytes, and no difference to be seen
PATIENCE = 180
REPORT = [(1280, "light", 1250), (1280, "dark", 1250), (768, "light", 1250), (768, "dark", 1250)]
REPORT += [(390, "light", 1400), (390, "dark", 1400)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default=os.environ.get("VISPCO_STORAGE", "sqlite:///vispco.db"))
    storage = parser.parse_args().storage
    FOLDER.mkdir(exist_ok=True)
    browser = chromium()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch) / "report.html"
            with open_store(storage, read_only=True) as store:
                write_report(store, EXPERIMENT, page)
            for width, scheme, height in REPORT:
                report(browser, page, width, scheme, height)
            terminal(browser, ["vispco", "compare", EXPERIMENT], storage, Path(scratch))
        dashboard(browser, storage)
    finally:
        browser.quit()


def chromium() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def report(browser: Any, page: Path, width: int, scheme: str, height: int) -> None:
    """The page's top, with what is in it drawn."""
    window(browser, width, height, scheme)
    browser.get(page.as_uri())
    wait(
        lambda: browser.execute_script(
            "return [...document.querySelectorAll('.figure')].every((p) => p.dataset.drawn || !p.offsetParent ||"
            " p.getBoundingClientRect().top > innerHeight)"
        )
    )
    save(browser, f"report-{width}-{scheme}")


def dashboard(browser: Any, storage: str) -> None:
    """The study of all fronts in optuna-dashboard."""
    store = Store(storage, read_only=True)
    server = listen(store, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    window(browser, 1280, 1150, "light")
    address = f"http://127.0.0.1:{server.server_port}"
    browser.get(f"{address}/api/studies")
    wait(lambda: "comparison" in browser.page_source)
    browser.get(f"{address}/dashboard/studies/-1")
    wait(lambda: browser.execute_script("return document.querySelectorAll('.main-svg').length > 12"))
    time.sleep(2)  # its figures are drawn in steps
    save(browser, "dashboard")
    server.shutdown()


def terminal(browser: Any, command: list[str], storage: str, scratch: Path) -> None:
    """What a command prints to a terminal, as a picture."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {' '.join(command)}", style="bold"))
    console.print(Text.from_ansi(printed(command, storage, columns=90)))
    page = scratch / "terminal.html"
    lines = html.unescape(console.export_text()).rstrip()
    page.write_text(
        "<meta charset='utf-8'><body style='margin:0;background:#16191b'><pre style='margin:0;padding:16px;"
        f"color:#e8e6e1;font:14px/1.4 DejaVu Sans Mono,monospace'>{html.escape(lines)}</pre></body>",
        encoding="utf-8",
    )
    window(browser, 820, 100, "dark")
    browser.get(page.as_uri())
    height = browser.execute_script("return document.querySelector('pre').scrollHeight")
    window(browser, 820, height, "dark")
    browser.get(page.as_uri())
    save(browser, "terminal")


def printed(command: list[str], storage: str, columns: int) -> str:
    process, told = pty.fork()
    if process == 0:
        os.environ.update(VISPCO_STORAGE=storage, COLUMNS=str(columns), TERM="dumb")
        program = "import sys; from vispco.cli.main import main; sys.argv[0] = 'vispco'; main()"
        os.execv(sys.executable, [sys.executable, "-c", program, *command[1:]])
    found = b""
    while True:
        try:
            part = os.read(told, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.waitpid(process, 0)
    return found.decode().replace("\r\n", "\n")


def window(browser: Any, width: int, height: int, scheme: str) -> None:
    browser.get("about:blank")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait(done: Callable[[], Any]) -> None:
    limit = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > limit:
            raise TimeoutError("the page was not drawn")
        time.sleep(0.2)


def save(browser: Any, name: str) -> None:
    data = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)
    print(FOLDER / f"{name}.png", (FOLDER / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
