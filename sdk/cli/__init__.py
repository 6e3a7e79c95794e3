"""The command `edge`: one verb per public function, and what its exit codes mean."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence

from sdk.errors import ArtifactError, BudgetError, EdgeError, EngineError, ParityError
from sdk.extras import installed

__all__ = ["EXIT", "exit_code", "main"]

# The first row that fits decides. 1: a check failed. 2: the command was used wrongly.
EXIT: tuple[tuple[type[Exception], int], ...] = (
    (ParityError, 1),
    (BudgetError, 1),
    (ArtifactError, 1),
    (EngineError, 1),
    (EdgeError, 2),
    (OSError, 2),
)


def exit_code(error: Exception) -> int:
    """The exit code of an error that ended a verb."""
    return next(code for kind, code in EXIT if isinstance(error, kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return its exit code.

    `--debug` may stand before or behind the verb, so it is taken out here.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    missing = [package for package in ("typer", "rich") if not installed(package)]
    if missing:
        print(
            f"error: The command `edge` needs the package {missing[0]!r}, which is not installed.\n"
            "  fix: pip install 'edge-sdk[cli]'",
            file=sys.stderr,
        )
        return 2
    debug = "--debug" in given
    with warnings.catch_warnings():
        _show_own_warnings_only(debug)
        return _run([word for word in given if word != "--debug"], debug=debug)


def _run(arguments: list[str], *, debug: bool) -> int:
    from sdk.cli.app import app  # imports typer and rich

    as_json = "--json" in arguments
    try:
        app(arguments, prog_name="edge")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 2
        if as_json and code == 2:
            _print_json(
                "UsageError", {"what": "The command line was not understood: see stderr."}, 2
            )
        return code
    except (EdgeError, OSError) as error:
        if debug:
            raise
        return _report(error, as_json=as_json)
    return 0


def _report(error: EdgeError | OSError, *, as_json: bool) -> int:
    """Say what went wrong on stderr and, where JSON was asked for, as the document on stdout."""
    from sdk.cli.output import print_error

    code = exit_code(error)
    print_error(error)
    if as_json:
        fields = ("what", "expected", "got", "fix")
        parts = {name: getattr(error, name, None) for name in fields}
        texts = {name: str(part) for name, part in parts.items() if part is not None}
        _print_json(type(error).__name__, texts or {"what": str(error)}, code)
    return code


def _print_json(kind: str, parts: dict[str, str], code: int) -> None:
    print(json.dumps({"error": {"type": kind, **parts}, "exit_code": code}, indent=1))


def _show_own_warnings_only(debug: bool) -> None:
    """Our own warnings are told, each in one line; what libraries warn of only with `--debug`."""
    if debug:
        return
    from sdk.cli.output import say
    from sdk.placement import FallbackWarning
    from sdk.search.cache import CacheWarning

    warnings.simplefilter("ignore")
    for kind in (FallbackWarning, CacheWarning):
        warnings.simplefilter("always", kind)
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
