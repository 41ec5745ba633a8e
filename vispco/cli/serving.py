"""``vispco serve``: load, say what is served where, listen."""

from __future__ import annotations

import sys
from typing import Any

from vispco.errors import ConfigError
from vispco.integrations.transformers_serve.limits import Limits


def serve_model(model: str, schedules: list[str], host: str, port: int, *, limits: Limits, **settings: Any) -> None:
    """Serve until the process is stopped.

    Raises:
        ConfigError: packages are missing, or the folder of pictures does not exist.
        ModelError, ScheduleError: what cannot be served, before anything listens.
    """
    if limits.local is not None and not limits.local.is_dir():
        raise ConfigError(f"--local-pictures {str(limits.local)!r} is no folder; give one, or leave the option out")
    try:
        from vispco.integrations.transformers_serve.app import build, listen
    except ImportError as error:
        raise ConfigError(f"vispco serve needs {error.name}; install it with: pip install 'vispco[serve]'") from None
    server = build(model, schedules, limits=limits, **settings)
    print(f"http://{host}:{port}/v1 serves", file=sys.stderr)
    for name, served in server.served.items():
        notes = [f"on {served.measured_on}, not on {model}"] if served.measured_on not in (None, model) else []
        notes += [f"with {name} {value}" for name, value in served.conditions.items() if value != settings.get(name)]
        note = f" (measured {', '.join(notes)})" if notes else ""
        print(f"  {name}: {served.about()}{note}", file=sys.stderr, flush=True)
    listen(server, host, port)
