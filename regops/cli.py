"""The command ``regops``: registers the commands, nothing else."""

from __future__ import annotations

import click

from regops import __version__
from regops.commands.audit import audit
from regops.commands.check import check
from regops.commands.history import at, diff, history
from regops.commands.mirror import mirror
from regops.commands.operate import resume, suspend
from regops.commands.plan import plan
from regops.commands.rego_test import rego_test
from regops.commands.rollback import rollback
from regops.commands.run import agent, server
from regops.commands.shards import shards
from regops.commands.status import fleet, passes, status, trace
from regops.commands.sync import sync
from regops.commands.version import version
from regops.dev import dev


@click.group(
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


for command in (
    agent,
    at,
    audit,
    check,
    dev,
    diff,
    fleet,
    history,
    mirror,
    passes,
    plan,
    resume,
    rollback,
    server,
    shards,
    status,
    suspend,
    sync,
    trace,
    rego_test,
    version,
):
    main.add_command(command)
