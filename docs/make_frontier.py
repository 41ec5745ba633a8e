"""Draw docs/frontier.png from a finished quickstart run: ``python docs/make_frontier.py [STORAGE]``.

Needs a Chromium or Chrome on the path; nothing is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plotly.offline import get_plotlyjs
from vispco.dashboards.figures import frontiers

from vispco.analysis.comparison import Comparison
from vispco.storage.store import Store, default_url


def main() -> None:
    store = Store(sys.argv[1] if len(sys.argv) > 1 else default_url(), create=False)
    comparison = Comparison(store, "quickstart")
    figure = frontiers(comparison.to_dict(), comparison.points())
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white", font_color="#333", width=900, height=480)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no chromium or chrome on the path; install one, for example: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        script = f"Plotly.newPlot('f', {figure.to_json()}.data, {figure.to_json()}.layout, {{displayModeBar: false}})"
        body = f"<body style='margin:0'><div id='f'></div><script>{get_plotlyjs()}</script><script>{script}</script>"
        page.write_text(body, encoding="utf-8")
        target = Path(__file__).parent / "frontier.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        sizes = ["--window-size=900,480", "--virtual-time-budget=4000", f"--screenshot={target}"]
        command = [browser, *options, f"--user-data-dir={folder}/profile", *sizes, page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        print(target)


if __name__ == "__main__":
    main()
