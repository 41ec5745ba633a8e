"""``vispco dashboard``: optuna-dashboard on our database."""

from __future__ import annotations

import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

from vispco.errors import ConfigError
from vispco.storage.store import Store, redact


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


def serve(storage: str | None, host: str, port: int) -> None:
    """Serve until interrupted. Loopback unless told otherwise: the dashboard has no login.

    Raises:
        StorageError: there is no such database.
        ConfigError: the address cannot be listened on.
    """
    from optuna_dashboard import wsgi

    store = Store(storage, create=False)
    app = wsgi(store.optuna)
    try:
        server = make_server(host, port, app, handler_class=_Quiet)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    print(
        f"optuna-dashboard on {redact(store.url)}: http://{host}:{server.server_port}/ (Ctrl-C stops it)",
        file=sys.stderr,
    )
    with server:
        server.serve_forever()
