"""Configuration for HAProxy 2.6 or newer, built with OpenSSL (as distributions have it). Pure.

HAProxy computes `reconciler.core.shards` itself, two lines for each shard, so that nothing has to be made anew when
projects come and go; only another number of shards is another configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

from regops.gateways.backends import Backends
from regops.gateways.paths import AMBIGUOUS, METHOD, NAME, NOWHERE, PLATFORM_PATH, PROJECTS_PATH, Refusal

_LOW = 1024
"""A weight times this, and the shard's number (from the other end, so that of equal weights the lowest wins) below."""

_HEAD = """\
# Questions to {count} shards of OPA. Made by `regops shards haproxy`; made anew only for other addresses or another
# number of shards, never for projects. Check it with: haproxy -c -f FILE
global
    log stderr format raw local0 notice

defaults
    mode http
    log global
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    timeout http-keep-alive 60s
    # A question changes nothing, so it may be asked again elsewhere. The first connection that fails takes an OPA out,
    # so that the next try is already its replica's; two good looks at its health bring it back.
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 503
    option httpchk
    http-check send meth GET uri /health?bundles
    http-check expect status 200
    default-server check inter 1s fastinter 250ms fall 2 rise 2 observe layer4 error-limit 1 on-error mark-down \
init-addr last,libc,none

frontend regops
    bind {listen}
    {method} unless {{ method GET POST }}
    # What OPA may read otherwise than this gateway is not passed on.
    {ambiguous} unless {{ path,url_dec -m found }}
    {ambiguous} if {{ path,url_dec -m reg //|/[.][.]?(/|$) }}
    acl platform path_reg ^{platform}(/|$)
    {nowhere} unless platform or {{ path_reg ^{projects}/. }}
    http-request set-var(txn.project) path,field(5,/),url_dec unless platform
    acl named var(txn.project) -m len 1:63
    acl misnamed var(txn.project) -m reg [^a-z0-9-]|^-|-$
    acl misnamed var(txn.project) -m str platform
    {name} if !platform misnamed
    {name} unless platform or named
    # The shard that weighs most answers: the first 6 bytes of SHA-256 of "project/shard", of equal ones the lowest.
"""


def configuration(backends: Backends, listen: str) -> str:
    """The whole file."""
    head = _HEAD.format(
        count=backends.count,
        listen=listen,
        platform=PLATFORM_PATH,
        projects=PROJECTS_PATH,
        method=_answer(METHOD),
        ambiguous=_answer(AMBIGUOUS),
        nowhere=_answer(NOWHERE),
        name=_answer(NAME),
    )
    rules = [line for index in range(1, backends.count + 1) for line in _weighing(index)]
    rules.append(f"http-request set-var(txn.low) var(txn.best),and({_LOW - 1}) unless platform")
    rules.append(f"http-request set-var(txn.shard) int({_LOW}),sub(txn.low) unless platform")
    rules += ["use_backend platform if platform", "use_backend shard_%[var(txn.shard)]"]
    parts = [head + "".join(f"    {rule}\n" for rule in rules)]
    parts += [_backend(f"shard_{index}", shard) for index, shard in enumerate(backends.shards, start=1)]
    parts.append(_platform(backends))
    return "\n".join(parts)


def _weighing(index: int) -> list[str]:
    own = f"var(txn.project),concat(/{index}),sha2(256),bytes(0,6),hex,hex2i,mul({_LOW}),add({_LOW - index})"
    if index == 1:
        return [f"http-request set-var(txn.best) {own} unless platform"]
    better = "!platform { var(txn.own),sub(txn.best) gt 0 }"
    return [
        f"http-request set-var(txn.own) {own} unless platform",
        f"http-request set-var(txn.best) var(txn.own) if {better}",
    ]


def _backend(name: str, addresses: Sequence[str]) -> str:
    lines = [f"backend {name}"]
    for number, address in enumerate(addresses, start=1):
        lines.append(f"    server {name}-{number} {address}{' backup' if number > 1 else ''}")
    return "\n".join([*lines, ""])


def _platform(backends: Backends) -> str:
    """Every OPA has the platform."""
    lines = ["backend platform", "    balance roundrobin"]
    lines += [f"    server opa-{number} {address}" for number, address in enumerate(backends.all(), start=1)]
    return "\n".join([*lines, ""])


def _answer(refusal: Refusal) -> str:
    return f"http-request return status {refusal.status} content-type application/json string '{refusal.body()}'"
