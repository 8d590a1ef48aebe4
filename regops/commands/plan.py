"""``regops plan``: what a sync would change, against the live policy in etcd; nothing is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from reconciler.core.errors import StalledError
from reconciler.core.live import LiveState
from reconciler.core.plan import Change, Operation, Plan
from reconciler.core.records import Held
from regops import compose
from regops.commands.errors import one_line
from regops.commands.table import table
from regops.commands.target import Target, target_options


@click.command(
    epilog="""\b
Examples:
  regops plan                                    the head of the branch that the `regops dev` of this folder follows
  regops plan --folder my-policies               the files of a clone
  regops plan --folder my-policies --commit HEAD~1
  regops plan --folder . --state ../.regops/dev  in the clone, where `regops dev` was started one folder further up
  regops plan --config regops.yaml --json        for a program, with the settings of a server
""",
)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A repository's folder.")
@click.option("--commit", metavar="REV", help="A commit of the repository in --folder instead of its files.")
@click.option("--exit-code", is_flag=True, help="Exit with 2 when there is something to change or to hold.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@target_options
@one_line
def plan(target: Target, folder: Path | None, commit: str | None, *, exit_code: bool, as_json: bool) -> None:
    """Show what a sync would create, update, delete, hold or block, against what is live. Nothing is written.

    Without --folder it is the head of the branch that the system follows. The exit code is 0 also when there is
    something to change, unless --exit-code is given.
    """
    if commit and folder is None:
        folder = Path()
    settings = target.settings()

    async def run() -> tuple[str, LiveState, Plan, Mapping[str, Held]]:
        async with (
            compose.open_store(settings.etcd) as store,
            compose.open_plan_source(settings, folder, commit) as (source, head),
            compose.open_judge(settings, source) as judge,
        ):
            reconciler = compose.make_reconciler(settings, source, store, judge)
            live, planned, held, tree = await reconciler.preview(head)
            if folder is not None and not tree.found:
                raise StalledError(
                    f"there is no folder {settings.git.path!r} in {commit or 'the files'} of {folder}",
                    reason="NoPolicies",
                    remedy="Name the root of a policy repository with --folder, and its folder with git.path.",
                )
            return head, live, planned, held

    head, live, planned, held = asyncio.run(run())
    if folder is not None and commit is None:
        head = ""  # files have no commit; the one that stands for them is nobody's
    what = f"Commit {head}" if head else f"Files in {folder}"
    click.echo(_as_json(head, live, planned, held) if as_json else _as_text(what, live, planned, held))
    if exit_code and (planned.changes or held):
        raise SystemExit(2)


def _as_text(what: str, live: LiveState, planned: Plan, held: Mapping[str, Held]) -> str:
    lines = [f"{what}; {live.count} policies live"]
    if live.suspended:
        lines.append("Suspended: a sync would change nothing until `regops resume`")
    if planned.changes:
        rows = [[c.policy, c.operation, c.cause, _etag(c.live.etag), _etag(_wanted(c))] for c in planned.changes]
        lines += ["", table(["POLICY", "OPERATION", "CAUSE", "LIVE", "DESIRED"], rows)]
    for name, record in sorted(held.items()):
        lines += ["", f"{name} is held ({record.reason}):", *(f"  {error}" for error in record.errors)]
    counts = ", ".join(f"{len(planned.of(kind))} to {kind}" for kind in _WRITES)
    lines += ["", f"{counts}, {len(held)} held" if planned.changes or held else "Nothing to change"]
    return "\n".join(lines)


def _as_json(head: str, live: LiveState, planned: Plan, held: Mapping[str, Held]) -> str:
    document: dict[str, Any] = {
        "commit": head or None,
        "suspended": live.suspended is not None,
        "policies": {"live": live.count},
        "changes": [
            {
                "policy": change.policy,
                "operation": str(change.operation),
                "cause": str(change.cause),
                "etag_before": change.live.etag,
                "etag_after": _wanted(change),
            }
            for change in planned.changes
        ],
        "held": [{"policy": name, **asdict(record)} for name, record in sorted(held.items())],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


_WRITES = (Operation.CREATE, Operation.UPDATE, Operation.DELETE)


def _wanted(change: Change) -> str | None:
    return change.target.blobs.etag if change.target else None


def _etag(etag: str | None) -> str:
    return etag.strip('"')[:12] if etag else "-"
