"""Errors of commands: one line with the remedy, no traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from reconciler.core.errors import RegopsError

P = ParamSpec("P")
R = TypeVar("R")


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with ``Error: <what>. <remedy>`` and exit code 1 for every error that regops raises."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except RegopsError as error:
            raise click.ClickException(str(error)) from error

    return run
