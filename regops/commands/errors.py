"""Errors of commands: one line with the remedy, no traceback."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import click

from reconciler.core.errors import RegopsError

P = ParamSpec("P")
R = TypeVar("R")


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with ``Error: <what>. <remedy>`` and exit code 1 for every error that regops raises.

    Also for one that comes out of a task group, and for a port that is taken. Anything else is a defect and keeps its
    traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (RegopsError, OSError, ExceptionGroup) as error:
            for leaf in _leaves(error):
                if message := _message(leaf):
                    raise click.ClickException(message) from error
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
        return str(error)
    if isinstance(error, TimeoutError) and error.args:
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"{error.strerror}. Choose another port: server.port or agent.port."
    return None
