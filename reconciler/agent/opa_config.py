"""The OPA configuration to use with an agent, as text. Pure."""

from __future__ import annotations

import json
from typing import Final

BUNDLE: Final = "regops"
"""The bundle's name in OPA's configuration, status and provenance."""
RESOURCE: Final = f"bundles/{BUNDLE}"

_TEMPLATE: Final = """\
# OPA beside a regops agent: opa run --server --config-file FILE
services:
  regops:
    url: {url}

bundles:
  {bundle}:
    service: regops
    resource: {resource}
    # The agent keeps the last bundle on disk and serves it with etcd away; a second copy could only be older.
    persist: false
    polling:
      # The agent answers a poll as soon as there is something new. The delays count only after an error: OPA's
      # defaults, 60 and 120 s, would make the next good bundle that late.
      min_delay_seconds: {min_delay}
      max_delay_seconds: {max_delay}
      long_polling_timeout_seconds: {hold}

# OPA tells the agent its version and what it refuses. Decision logs are off: nothing receives them.
status:
  service: regops

# Decisions are counted around the 20 ms that they may take; OPA's own buckets have nothing between 10 and 100.
server:
  metrics:
    prom:
      http_request_duration_seconds:
        buckets: [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1]
{labels}"""


def opa_config(
    url: str,
    *,
    hold_seconds: int = 30,
    min_delay_seconds: int = 1,
    max_delay_seconds: int = 2,
    labels: dict[str, str] | None = None,
) -> str:
    """YAML for an OPA that is served by the agent at ``url`` (``http://127.0.0.1:8282``). ``labels`` show up in OPA's
    own status and logs."""
    return _TEMPLATE.format(
        url=json.dumps(url),
        bundle=BUNDLE,
        resource=RESOURCE,
        min_delay=min_delay_seconds,
        max_delay=max_delay_seconds,
        hold=hold_seconds,
        labels=f"\nlabels: {json.dumps(labels, sort_keys=True)}\n" if labels else "",
    )
