"""How commands take a policy: by its name in status and history, or only by the project's."""

from __future__ import annotations

import click

from reconciler.core.model import PLATFORM, policy_name, project_of, project_policy


class PolicyArgument(click.ParamType[str]):
    """``platform``, ``projects/<project>`` or ``<project>``, as ``platform`` or ``projects/<project>``."""

    name = "policy"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.ParamType`; a wrong name is wrong usage."""
        try:
            return policy_name(value) if "/" in value or value == PLATFORM else project_policy(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def path_of(policy: str) -> str:
    """Where the API has it."""
    name = policy_name(policy)
    return f"/policies/{project_of(name) or PLATFORM}"
