"""How each Git host proves that a webhook is its own, over the raw body.

GitHub's and Gitea's HMAC (docs.github.com "Validating webhook deliveries", docs.gitea.com "Webhooks"); GitLab's
signature (standardwebhooks.com) or token (docs.gitlab.com "Webhooks", "System hooks").
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from api.hook_secrets import key_in


@dataclass(frozen=True, slots=True)
class Provider:
    """How one kind of host signs and names things. ``pushes``: the event's names for a push, ``pings`` for a test."""

    name: str
    proof: Callable[[Mapping[str, str], bytes, bytes], bool]
    event: Callable[[Mapping[str, str]], str]
    pushes: Collection[str]
    pings: Collection[str] = ()


def _hmac_of(*headers: str) -> Callable[[Mapping[str, str], bytes, bytes], bool]:
    """HMAC-SHA256 over the body in one of these headers, in hex, with or without ``sha256=`` before it."""

    def proven(found: Mapping[str, str], body: bytes, secret: bytes) -> bool:
        wanted = hmac.new(secret, body, hashlib.sha256).hexdigest()
        given = [found[name].removeprefix("sha256=") for name in headers if name in found]
        return any(_same(each, wanted) for each in given)

    return proven


def _token_in(header: str, prefix: str = "") -> Callable[[Mapping[str, str], bytes, bytes], bool]:
    def proven(found: Mapping[str, str], body: bytes, secret: bytes) -> bool:
        del body
        given = found.get(header, "")
        return given.startswith(prefix) and _same(given.removeprefix(prefix), secret.decode())

    return proven


def _generic(found: Mapping[str, str], body: bytes, secret: bytes) -> bool:
    return _hmac_of("X-Regops-Signature")(found, body, secret) or _token_in("Authorization", "Bearer ")(
        found, body, secret
    )


def _signed(found: Mapping[str, str], body: bytes, secret: bytes) -> bool:
    """By the Standard Webhooks: one of the signatures in the header is of id, time and body.

    How old the time is does not matter here. The standard has it checked against replays, and a hook that is replayed
    makes the loop look once more, and nothing else; a clock that is off would refuse every hook.
    """
    key = key_in(secret)
    if key is None:
        return False
    signed = f"{found.get('webhook-id', '')}.{found.get('webhook-timestamp', '')}.".encode("utf-8", "surrogateescape")
    wanted = "v1," + base64.b64encode(hmac.new(key, signed + body, hashlib.sha256).digest()).decode()
    return any(_same(each, wanted) for each in found["webhook-signature"].split())


def _gitlab(found: Mapping[str, str], body: bytes, secret: bytes) -> bool:
    """A signature, where there is one, and then nothing else: the token beside it ties nothing to the body."""
    return (_signed if "webhook-signature" in found else _token_in("X-Gitlab-Token"))(found, body, secret)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _named(*headers: str) -> Callable[[Mapping[str, str]], str]:
    return lambda found: next((found[name] for name in headers if name in found), "")


PROVIDERS: Final = {
    provider.name: provider
    for provider in (
        Provider("github", _hmac_of("X-Hub-Signature-256"), _named("X-GitHub-Event"), {"push"}, {"ping"}),
        Provider("gitlab", _gitlab, _named("X-Gitlab-Event"), {"Push Hook", "System Hook"}),
        Provider(
            "gitea",
            _hmac_of("X-Gitea-Signature", "X-Forgejo-Signature", "X-Gogs-Signature"),
            _named("X-Forgejo-Event", "X-Gitea-Event", "X-Gogs-Event"),
            {"push"},
        ),
        Provider("generic", _generic, lambda _: "push", {"push"}),
    )
}
