"""Passwords out of everything that is shown or stored."""

from __future__ import annotations

import re

HIDDEN = "***"

# user:password@ after ://; a password may hold /, : and, written wrongly, @, so the last @ before a blank counts.
_IN_URL = re.compile(r"(://[^\s:/@'\"]*):[^\s'\"]*@(?=[^\s@]*)")
_SETTING = re.compile(
    r"\b(PGPASSWORD|(?:\w*_)?(?:password|passwd|pwd|sslpassword))(['\"]?\s*[=:]\s*)"
    r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&;,'\")}\]]+)",
    re.IGNORECASE,
)


def redact_text(text: str) -> str:
    """``text`` with the passwords of URLs (``://user:password@``) and settings (``password=...``) as ``***``."""
    return _SETTING.sub(rf"\1\2{HIDDEN}", _IN_URL.sub(rf"\1:{HIDDEN}@", text))
