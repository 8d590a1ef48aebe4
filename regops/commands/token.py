"""``regops dev token``: a token of the local issuer, for trying the API out."""

from __future__ import annotations

import json
from pathlib import Path

import click

from regops.commands.errors import one_line
from regops.commands.target import DEFAULT_STATE


@click.command(
    short_help="Print a token of the local issuer.",
    epilog="""\b
Examples:
  regops dev token --role platform_admin             reads and writes everything
  regops dev token --project billing --sub ann       reads one project
  regops dev token --role platform_admin --ttl -60   one that has expired
  curl -H "Authorization: Bearer $(regops dev token --project billing)" "$(regops dev show api)/policies/billing"
""",
)
@click.option("--role", "roles", multiple=True, metavar="NAME", help="A role; can be given more than once.")
@click.option("--project", "projects", multiple=True, metavar="NAME", help="A project; can be given more than once.")
@click.option("--sub", default="dev", show_default=True, help="Whom the token speaks for.")
@click.option("--name", metavar="TEXT", help="Full name, the author of commits.")
@click.option("--email", help="Address, the author of commits.")
@click.option("--tenant", metavar="NAME", help="Tenant.  [default: the one that `regops dev` serves]")
@click.option("--ttl", type=int, default=3600, show_default=True, help="Seconds that it lives; -60: it has expired.")
@click.option("--aud", metavar="NAME", help="Audience.  [default: the one that `regops dev` expects]")
@click.option("--iss", metavar="URL", help="Issuer.  [default: the one that `regops dev` expects]")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the `regops dev`.  [default: as for dev]")
@click.option("--json", "as_json", is_flag=True, help="Print the token and its claims as JSON.")
@click.pass_context
@one_line
def token(
    context: click.Context,
    *,
    roles: tuple[str, ...],
    projects: tuple[str, ...],
    sub: str,
    name: str | None,
    email: str | None,
    tenant: str | None,
    ttl: int,
    aud: str | None,
    iss: str | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Print one token of the local issuer.

    Without --role and --project it may read no policy.
    """
    from regops import issuer  # noqa: PLC0415 cryptography is loaded by the command that needs it only

    named = context.parent.params["state"] if context.parent else DEFAULT_STATE
    extra = {claim: value for claim, value in (("name", name), ("email", email)) if value}
    signer = issuer.Issuer.open(state or named, create=False)
    minted = signer.mint(
        sub=sub,
        roles=roles,
        projects=projects,
        tenant=issuer.TENANT if tenant is None else tenant,
        ttl=ttl,
        aud=issuer.AUD if aud is None else aud,
        iss=issuer.ISS if iss is None else iss,
        extra=extra,
    )
    click.echo(json.dumps({"token": minted, "claims": issuer.claims_of(minted)}) if as_json else minted)
