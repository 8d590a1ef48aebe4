"""The command ``regops``: which commands there are and where each is, nothing else.

A command is imported when it is asked for: an agent must not carry what a server needs, and help comes at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from regops import __version__

_COMMANDS: Final = {
    "agent": ("regops.commands.run:agent", "Serve the applied policy to the OPA beside it."),
    "at": ("regops.commands.history:at", "Which version of each policy was live at a time."),
    "audit": ("regops.commands.audit:audit", "Who did what, and what came of it."),
    "check": ("regops.commands.check:check", "Would these policies go live? file:line:column of each error."),
    "dev": ("regops.dev:dev", "Run the whole system here, to try it and to write policies."),
    "diff": ("regops.commands.history:diff", "What changed between two versions of a policy."),
    "fleet": ("regops.commands.status:fleet", "Which commit each OPA proves to enforce."),
    "history": ("regops.commands.history:history", "Who changed which policy, when, and what became of it."),
    "mirror": ("regops.commands.mirror:mirror", "Restore a lost Git remote from a replica's mirror."),
    "passes": ("regops.commands.status:passes", "What the leader's passes did, by whom, and how long it took."),
    "plan": ("regops.commands.plan:plan", "What a sync would create, update, delete, hold or block."),
    "resume": ("regops.commands.operate:resume", "Go on applying commits."),
    "rollback": ("regops.commands.rollback:rollback", "Put an earlier version of a policy back."),
    "server": ("regops.commands.run:server", "Serve the API, and apply commits while elected."),
    "shards": ("regops.commands.shards:shards", "Gateways that ask the right shard, and whose shard is which."),
    "status": ("regops.commands.status:status", "What is live, what is held and why, who enforces it."),
    "suspend": ("regops.commands.operate:suspend", "Stop applying commits; what is live stays."),
    "sync": ("regops.commands.sync:sync", "Look at the repository now; confirm blocked deletions."),
    "test": ("regops.commands.rego_test:rego_test", "Run the Rego unit tests of a policy repository."),
    "trace": ("regops.commands.status:trace", "One commit's way: pushed, seen, applied, enforced by each OPA."),
    "version": ("regops.commands.version:version", "Print the version."),
}
"""Name → where the command is, and the line about it in the list."""


class _Commands(click.Group):
    """The commands of `_COMMANDS`; to list them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{name} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in sorted(_COMMANDS.items())])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Start here:
  regops dev      the whole system on this machine
  regops check    would these policies go live?
  regops status   what is live, what is held, who enforces it
\b
Exit codes: 0 done; 1 an error, or not all well; 2 wrong usage (also `check`: no verdict, and
`plan --exit-code`: something to change); 130 interrupted. Settings and environment variables: docs/settings.md.
""",
)
@click.version_option(__version__, prog_name="regops")
def main() -> None:
    """GitOps for Open Policy Agent: a merged commit becomes the policy that every OPA enforces."""
