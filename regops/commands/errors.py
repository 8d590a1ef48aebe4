"""Errors of commands: one line with the remedy, no traceback."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from typing import Final, ParamSpec, TypeVar

import click

from reconciler.core.errors import RefusalError, RegopsError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 and the signal's number, as shells have it."""
_REMEDIES: Final = {
    "StoreUnavailable": "Is etcd running? Its addresses are etcd.endpoints, or those of the `regops dev` in --state.",
    "Unauthenticated": "Correct etcd.user and etcd.password_file.",
    "PermissionDenied": "Let etcd.user read and write both prefixes.",
}
"""Where the error itself has none, since it also occurs in servers, which simply go on trying."""


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with ``Error: <what>. <remedy>`` and exit code 1 for every error that regops raises.

    Also for one that comes out of a task group, for a port that is taken and for a file that cannot be read. Ctrl-C
    ends it with `INTERRUPTED`. Anything else is a defect and keeps its traceback.
    """
    return _ending(command, click.ClickException)


class _NoVerdict(click.ClickException):
    exit_code = 2


def no_verdict(command: Callable[P, R]) -> Callable[P, R]:
    """The same for a command whose exit code 1 is a verdict: no answer is exit code 2, as wrong usage is."""
    return _ending(command, _NoVerdict)


def _ending(command: Callable[P, R], ending: type[click.ClickException]) -> Callable[P, R]:
    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise SystemExit(INTERRUPTED) from None
        except (RegopsError, RefusalError, OSError, ExceptionGroup) as error:
            for leaf in _leaves(error):
                if message := _message(leaf):
                    raise ending(message) from error
            raise

    return run


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _message(error: BaseException) -> str | None:
    if isinstance(error, RegopsError):
        remedy = error.remedy or _REMEDIES.get(error.reason, "")
        return f"{error.message}. {remedy}" if remedy else error.message
    if isinstance(error, RefusalError) or (isinstance(error, TimeoutError) and error.args):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"{error.strerror}. Choose another port: server.port or agent.port."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Correct the path, or who may read and write it."
    return None
