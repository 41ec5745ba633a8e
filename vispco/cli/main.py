"""Entry point of the command line. stdout carries results, stderr everything else."""

from __future__ import annotations

import os
import sys
import traceback

import vispco.cli.verbs  # noqa: F401
from vispco.cli import streams
from vispco.cli.app import app
from vispco.errors import VispcoError

LONGEST_LINE = 1000  # characters of an error, whatever values it quotes


def plugins_first(arguments: list[str]) -> list[str]:
    """Command-line arguments with every ``--plugin FILE`` before the command, which is where typer takes it."""
    first: list[str] = []
    rest = list(arguments)
    while any(word == "--plugin" or word.startswith("--plugin=") for word in rest):
        at = next(n for n, word in enumerate(rest) if word == "--plugin" or word.startswith("--plugin="))
        size = 1 if "=" in rest[at] else 2
        first += rest[at : at + size]
        del rest[at : at + size]
    return [*first, *rest]


def main() -> None:
    """Entry point: errors become one line; exit 2 for what the user can mend, 1 for failures."""
    import warnings

    import optuna

    from vispco.storage.redaction import redact_text

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    streams.prepare()
    try:
        code = app(plugins_first(sys.argv[1:]), prog_name="vispco", standalone_mode=False)
        if code == 130:  # which is how typer ends after Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        streams.say("vispco: stopped; what was finished is in the database, run the same command to go on")
        sys.exit(130)
    except Exception as error:
        output = streams.failure_of_output()
        if isinstance(output, BrokenPipeError):
            sys.exit(streams.NO_MORE_READER)
        usage, full = _usage_problem(error), streams.no_space(output or error)
        if os.environ.get("VISPCO_DEBUG") and usage is None:
            text = traceback.format_exc().rstrip()
        elif usage == "":  # no arguments at all: the help is what is wanted
            text = str(error)
        else:
            if usage is not None:
                said = usage
            elif isinstance(error, VispcoError):
                said = " ".join(str(error).split())
            elif full is not None:
                said = full
            else:
                what = redact_text(" ".join(f"{type(error).__name__}: {error}".split()))
                said = f"unexpected failure: {what[:500]}; run again with vispco --debug ... for the traceback"
            text = f"vispco: {said if len(said) <= LONGEST_LINE else f'{said[:LONGEST_LINE]}...'}"
        streams.say(redact_text(text))
        sys.exit(error.exit_code if isinstance(error, VispcoError) else 1 if usage is None and full is None else 2)


def _usage_problem(error: Exception) -> str | None:
    """What typer finds wrong with a command line, in one line; None for other errors, "" where help is the answer."""
    said = getattr(error, "format_message", None)
    if said is None:
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vispco"
    return f"{' '.join(said().split()).rstrip('.')}; see {command} --help"
