"""``vispco dashboard``: optuna-dashboard on our database, which it can only read."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sqlalchemy import event
from vispco.dashboards.optuna.constraints import best_trials
from vispco.dashboards.optuna.pages import App, styled
from vispco.dashboards.optuna.view import DashboardView

from vispco.errors import ConfigError
from vispco.storage.store import Store, redact

OURS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


class _Server(ThreadingMixIn, WSGIServer):
    """Browsers open connections that they may not use; a server of one thread would wait for them."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], *rest: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, *rest)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers also hang up; what fails otherwise was reported by the application."""


def serve(storage: str | None, host: str, port: int) -> None:
    """Serve until interrupted. Loopback unless told otherwise: the dashboard has no login.

    Raises:
        StorageError: there is no such database.
        ConfigError: the address cannot be listened on.
    """
    store = Store(storage, read_only=True)
    server = listen(store, host, port)
    print(
        f"optuna-dashboard on {redact(store.url)}: http://{_in_url(host)}:{server.server_port}/ (Ctrl-C stops it)",
        file=sys.stderr,
    )
    if not is_loopback(host):
        print("it has no login: whoever can reach this address can read all results, not change them", file=sys.stderr)
    with server:
        server.serve_forever()


def listen(store: Store, host: str, port: int) -> WSGIServer:
    """The server, not serving yet; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        return make_server(host, port, make_app(store, host), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None


def make_app(store: Store, host: str = "127.0.0.1") -> App:
    """The WSGI application. From here on ``store`` cannot write."""
    import optuna_dashboard._app as dashboard

    read_only(store)
    # Its own function lists infeasible trials among the best.
    dashboard.get_pareto_front_trials = best_trials
    if not os.environ.get("VISPCO_DEBUG"):
        # A study without parameters has no importances, which it would tell by a traceback.
        logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
    view = DashboardView(store)
    return guarded(styled(dashboard.create_app(view, artifact_store=view)), loopback=is_loopback(host))


def read_only(store: Store) -> None:
    """From here on the database refuses what ``store`` might write; on SQLite, reading does not lock out a driver."""
    engine = store.engine

    @event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        if engine.name == "sqlite":
            dbapi.execute("PRAGMA query_only=ON")

    engine.dispose()
    reading = engine.execution_options(vispco_read=True, postgresql_readonly=True)
    store.engine = store.optuna.engine = reading
    store.optuna.scoped_session.remove()
    store.optuna.scoped_session.configure(bind=reading)


def guarded(app: App, *, loopback: bool) -> App:
    """``app`` for reading only, and for this machine's own pages only.

    Args:
        loopback: refuse requests for another host's name. Such a name leads here if a page elsewhere had it point to
            this machine in order to read what is served on it.
    """

    def guard(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refused(start_response, "405 Method Not Allowed", "this dashboard only reads")
        if loopback and not is_loopback(_host(environ)):
            return _refused(start_response, "403 Forbidden", "open this dashboard by the address that it printed")
        ours = dict(OURS)
        if environ.get("PATH_INFO", "").startswith(("/artifacts", "/csv")):
            ours["Content-Security-Policy"] = "default-src 'none'; sandbox"

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # optuna-dashboard lets the pages of all sites read artifacts.
            kept = [(k, v) for k, v in headers if k.lower() != "access-control-allow-origin"]
            return start_response(status, [*kept, *ours.items()], *rest)

        answered: Iterable[bytes] = app(environ, start)
        return answered

    return guard


def _refused(start_response: Callable[..., Any], status: str, reason: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), *OURS.items()])
    return [json.dumps({"reason": reason}).encode()]


def _host(environ: dict[str, Any]) -> str:
    try:
        return urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
