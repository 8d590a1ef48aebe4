"""A static configuration for Envoy (API v3). Pure, but for the script beside this file.

Envoy has no arithmetic in its routes, so its Lua filter computes `reconciler.core.shards`, once for each project and
worker, and names the cluster; nothing has to be made anew when projects come and go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from regops.gateways.backends import Backends
from regops.gateways.paths import AMBIGUOUS, METHOD, NAME, NOWHERE, Refusal

HEADER: Final = "x-regops-shard"
_SCRIPT = Path(__file__).with_name("envoy_shards.lua")
_TYPE = "type.googleapis.com/envoy.extensions."
_HEAD = """\
# Questions to {count} shards of OPA. Made by `regops shards envoy`; made anew only for other addresses or another
# number of shards, never for projects. Check it with: envoy --mode validate --config-path FILE
"""


class _Dumper(yaml.SafeDumper):
    """Several lines as a block: the script stays readable."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def configuration(backends: Backends, listen: str) -> str:
    """The whole file."""
    clusters = [_cluster(f"shard_{i}", [[each] for each in shard]) for i, shard in enumerate(backends.shards, 1)]
    clusters.append(_cluster("platform", [backends.all()]))
    document = {"static_resources": {"listeners": [_listener(backends.count, listen)], "clusters": clusters}}
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return _HEAD.format(count=backends.count) + text


def _listener(count: int, listen: str) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "regops",
        # The script judges the path that OPA will get, so nobody may change it in between.
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "route_config": {"name": "shards", "virtual_hosts": [_host()]},
        "http_filters": [
            {
                "name": "envoy.filters.http.lua",
                "typed_config": {
                    "@type": f"{_TYPE}filters.http.lua.v3.Lua",
                    "default_source_code": {"inline_string": _script(count)},
                },
            },
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPE}filters.http.router.v3.Router"}},
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": "regops", "address": _address(listen), "filter_chains": [chain]}


def _host() -> dict[str, Any]:
    """One route: the script has said where to. A question changes nothing, so it may be asked again elsewhere."""
    retries = {
        "retry_on": "connect-failure,refused-stream,reset,gateway-error",
        "num_retries": 3,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_TYPE}retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": f"{_TYPE}retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
        "host_selection_retry_max_attempts": 3,
    }
    route = {
        "match": {"prefix": "/v1/data/"},
        "route": {"cluster_header": HEADER, "timeout": "60s", "retry_policy": retries},
        "request_headers_to_remove": [HEADER],
    }
    return {"name": "shards", "domains": ["*"], "routes": [route]}


def _cluster(name: str, levels: Iterable[Sequence[str]]) -> dict[str, Any]:
    """``levels``: those of the second are asked only while none of the first is healthy, and so on."""
    endpoints = [
        {
            "priority": priority,
            "lb_endpoints": [{"endpoint": {"address": _address(address)}} for address in addresses],
        }
        for priority, addresses in enumerate(levels)
    ]
    check = {
        "timeout": "1s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/health?bundles"},
    }
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        # With everything unhealthy nothing is asked at random.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [check],
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _script(count: int) -> str:
    text = _SCRIPT.read_text(encoding="utf-8").replace("@COUNT@", str(count))
    for word, refusal in (("METHOD", METHOD), ("AMBIGUOUS", AMBIGUOUS), ("NOWHERE", NOWHERE), ("NAME", NAME)):
        text = text.replace(f"@{word}@", _lua(refusal))
    return text


def _lua(refusal: Refusal) -> str:
    return f"{{ status = \"{refusal.status}\", body = '{refusal.body()}' }}"


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
