"""What is changed in optuna-dashboard's own pages: a style sheet, added to their HTML.

optuna-dashboard has no way to order a study's plots or to leave out what a read-only database cannot do. So this file,
and no other, leans on its element ids, labels and icon names; tests/test_dashboard_browser.py tells when one is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
COMPARISON = "comparison-"  # begins the names of a comparison study's figures
OURS = '[id^="user-defined-plot:"]'
# Creating, renaming and deleting studies, uploading and deleting files, editing notes: all are refused here.
WRITING = (
    "button:has([data-testid=AddBoxIcon])",
    'button[aria-label="rename study"]',
    'button[aria-label="delete study"]',
    'button[aria-label="delete artifact"]',
    "button:has([data-testid=EditIcon])",
    ".MuiCard-root:has(> button [data-testid=UploadFileIcon])",
)
STYLE = f"""
main > div:has(> .MuiGrid-container {OURS}) {{ display: flex; flex-flow: row wrap; align-content: flex-start; }}
main > div:has(> .MuiGrid-container {OURS}) > * {{ flex: 1 1 100%; min-width: 0; }}
main > div > .MuiGrid-container:has({OURS}) {{ display: contents; }}
main > div > .MuiGrid-container:has({OURS}) > * {{ flex: 1 1 45%; max-width: 50%; min-width: 0; }}
main > div > .MuiGrid-container:has({OURS}) > :has({OURS}) {{ flex-basis: 100%; max-width: 100%; order: -1; }}
main > div > .MuiGrid-container > :has([id$="held_out"]) {{ order: -2 !important; }}
div:has([id^="user-defined-plot:{COMPARISON}"]) .MuiGrid-item:has(> .MuiCard-root #graph-hyperparameter-importances) {{
  display: none;
}}
{", ".join(WRITING)} {{ display: none !important; }}
"""


def styled(app: App) -> App:
    """``app`` with the style sheet in every HTML page."""

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> None:
            told[:] = [status, headers, *rest]

        body = app(environ, start)
        headers = {name.lower(): value for name, value in told[1]}
        if not headers.get("content-type", "").startswith("text/html"):
            start_response(*told)
            return body
        whole = b"".join(body).replace(b"</head>", f"<style>{STYLE}</style></head>".encode(), 1)
        kept = [(name, value) for name, value in told[1] if name.lower() != "content-length"]
        start_response(told[0], [*kept, ("Content-Length", str(len(whole)))], *told[2:])
        return [whole]

    return page
