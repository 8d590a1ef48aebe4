"""``regops mirror``: what a replica has of the repository, for the day on which the remote is lost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from regops import compose
from regops.commands.errors import one_line
from regops.commands.target import Target, target_options


@click.group(
    epilog="""\b
Example:
  regops mirror export policies.git --config regops.yaml
""",
)
def mirror() -> None:
    """Every server keeps a mirror of the policy branch, with its whole history."""


@mirror.command(
    short_help="Write the mirror as a repository of its own.",
    epilog="""\b
Examples:
  regops mirror export /tmp/policies.git --config regops.yaml
  regops mirror export policies.git                               of the `regops dev` in this folder
  regops mirror export policies.git --commit 1a2b3c4              the branch as it was, after a force push
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--branch", metavar="NAME", help="The new repository's branch.  [default: git.branch]")
@click.option("--commit", metavar="COMMIT", help="Where the branch ends.  [default: the last head that is known]")
@click.option(
    "--mirror",
    "place",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The mirror itself.  [default: mirror.git below server.state]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@target_options
@one_line
def export(
    target: Target, folder: Path, branch: str | None, commit: str | None, place: Path | None, *, as_json: bool
) -> None:
    """Write a replica's mirror as a bare repository into FOLDER, from which a lost remote is restored.

    To be run on the replica's machine. Needs neither the remote nor etcd, and may be run beside a working server. Every
    object is verified. docs/runbooks/git-remote-lost.md says what comes next.
    """
    found, settings = target.mirror()
    done = compose.export_mirror(
        place or found,
        folder,
        branch=branch or settings.branch,
        path=settings.path,
        commit=commit,
        say=lambda step: click.echo(f"mirror: {step}", err=True),
    )
    head = done.head
    if as_json:
        counts = {"commits": done.commits, "policies": done.policies}
        written = {"folder": str(folder), "branch": branch or settings.branch, **counts, "head": asdict(head)}
        click.echo(json.dumps(written, indent=2, ensure_ascii=False))
        return
    click.echo(
        f"{folder}: branch {branch or settings.branch} at {head.commit} "
        f"({head.committed_at}, {head.author}: {head.subject})\n"
        f"{done.commits} commits, {done.policies} policies at its head\n"
        f"Next: git --git-dir={folder} push NEW-REMOTE {branch or settings.branch}"
    )
