"""Links that leave docs/ (to code, studies and tests) are names of files on the site, which holds the pages alone.

A Markdown extension, named in zensical.toml; ``make docs`` puts this folder on Python's path.
"""

from __future__ import annotations

import re
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


class Outside(Preprocessor):
    """One line at a time: a link is never broken over two lines on these pages."""

    def run(self, lines: list[str]) -> list[str]:
        return [OUTSIDE.sub(_named, line) for line in lines]


class OutsideLinks(Extension):
    """What :func:`makeExtension` gives to Python-Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Outside(md), "outside-links", 100)


def makeExtension(**options: Any) -> OutsideLinks:
    return OutsideLinks(**options)


def _named(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"`{path}`" if text.strip("`") == path or path.endswith(f"/{text}") else f"{text} (`{path}`)"
