"""``docs/cli.md`` from the commands' own help: ``python -m regops.cli_doc > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from regops.cli import main

_WIDTH = 110
_HEAD = """# Commands

Each with its own help, as `--help` prints it. Which system a command speaks to is said by `--state` (a running
`regops dev`), `--server` (the API of a server) or `--config` (the settings of a server); their variables, and all
others, are listed in [settings.md](settings.md). What to do when: [operations.md](operations.md).

Exit codes: 0 done; 1 an error, or not all well; 2 wrong usage, no verdict (`check`), a Rego unit test that
failed (`test`) or something to change (`plan --exit-code`); 130 interrupted by Ctrl-C.
"""


def document() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(f"## {name}\n\n```text\n{text}\n```\n" for name, text in _helps(main, "regops"))])


def _helps(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[tuple[str, str]]:
    settings = {**main.context_settings, "terminal_width": _WIDTH}
    context = click.Context(command, info_name=name, parent=above, **settings)
    lines = command.get_help(context).splitlines()
    yield context.command_path, "\n".join(line.rstrip() for line in lines)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            if (found := command.get_command(context, below)) is not None:
                yield from _helps(found, below, context)


if __name__ == "__main__":
    sys.stdout.write(document())
