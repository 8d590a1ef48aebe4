"""From policies to the bytes of an OPA bundle: pure and deterministic.

The bundle is a tar file compressed as concatenated gzip members (RFC 1952 section 2.2), one for the manifest, one for
each policy, one for the end: a change of one policy compresses one policy. Names in the tar and the keys of
``file_rego_versions`` are equal byte for byte, otherwise OPA refuses the whole bundle.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.agent.scope import Scope
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.model import DATA_FILE, REGO_FILE, PolicyName

NO_REVISION: Final = "none"
"""The manifest's revision, and the receipt's, while nothing was ever applied."""
_BLOCK: Final = 512
_LEVEL: Final = 1
"""The bytes travel over loopback: time counts, not size."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an OPA downloads. ``etag`` is the digest of the scope's content, so two commits that leave the scope as it
    was share it; ``revision`` is the commit for which the bytes were built."""

    etag: str
    revision: str
    body: bytes = field(repr=False)


class BundleBuilder:
    """Builds the bundles of one scope, one after the other, remembering each policy's compressed bytes by its ETag.

    Not safe for concurrent use. Takes about as long as compressing what changed.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._members: dict[PolicyName, tuple[str, bytes]] = {}

    def build(self, state: MirrorState, former: Bundle | None = None) -> Bundle:
        """The bundle of ``state``; ``former`` itself when the content is the same, so that an ETag keeps its bytes."""
        etag = content_etag(self._scope, state.policies)
        if former is not None and former.etag == etag:
            return former
        revision = state.commit or NO_REVISION
        names = sorted(state.policies)
        self._members = {name: (state.policies[name].etag, self._member(name, state.policies[name])) for name in names}
        manifest = _gzip(_entry(".manifest", _manifest(self._scope, revision, state.policies)))
        end = _gzip(bytes(2 * _BLOCK))
        return Bundle(etag, revision, b"".join([manifest, *(self._members[name][1] for name in names), end]))

    def _member(self, name: PolicyName, policy: MirrorPolicy) -> bytes:
        etag, member = self._members.get(name, ("", b""))
        return member if etag == policy.etag else _gzip(b"".join(_entries(name, policy)))


def content_etag(scope: Scope, policies: Mapping[PolicyName, MirrorPolicy]) -> str:
    """The strong entity-tag of what an OPA of this scope loads, quotes included; independent of any commit."""
    digest = hashlib.sha256(f"regops-bundle-1\n{scope}\n".encode())
    for name in sorted(policies):
        meta = policies[name].meta
        digest.update(f"{name}\n{meta.etag}\n{meta.rego_version}\n".encode())
    return f'"{digest.hexdigest()[:40]}"'


def _manifest(scope: Scope, revision: str, policies: Mapping[PolicyName, MirrorPolicy]) -> bytes:
    document = {
        "revision": revision,
        "roots": scope.roots(),
        "rego_version": 1,
        "file_rego_versions": {
            f"{name}/{REGO_FILE}": policy.meta.rego_version
            for name, policy in policies.items()
            if policy.meta.rego_version != 1
        },
        "metadata": {"scope": str(scope)},
    }
    return json.dumps(document, sort_keys=True).encode()


def _entries(name: PolicyName, policy: MirrorPolicy) -> Iterable[bytes]:
    yield _entry(f"{name}/{REGO_FILE}", policy.content.rego)
    if policy.content.data is not None:
        yield _entry(f"{name}/{DATA_FILE}", policy.content.data)


def _entry(name: str, content: bytes) -> bytes:
    """One file of a tar archive (POSIX ustar): header, content, zeros up to the block's end."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK)


def _gzip(data: bytes) -> bytes:
    """One gzip member, without a time in it."""
    return zlib.compress(data, _LEVEL, wbits=31)
