"""How git may reach a remote: the whole environment and configuration that its processes see.

Nothing of the machine's or the user's Git configuration takes part, and nothing comes from a caller's data: a fixed
set of options (git-config(1), git(1) "Environment Variables") plus the operator's own files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

PASSED_ON: Final = frozenset(
    {
        "PATH",
        "TMPDIR",
        "SSH_AUTH_SOCK",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    }
)
"""What a git process inherits from ours; every other variable is unset."""

_FIXED_ENVIRONMENT: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/true",
    "SSH_ASKPASS": "/bin/true",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_SSH_VARIANT": "ssh",
    "HOME": "/nonexistent",
    "LANGUAGE": "C",
    "LC_ALL": "C",
}

_FIXED_CONFIG: Final = (
    "core.attributesFile=/dev/null",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "credential.helper=",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    # A redirect is followed for the first request only, and only to an allowed protocol.
    "http.followRedirects=initial",
    # A connection that moves less than 1 kB/s for 30 s ends by itself, even when regops was killed meanwhile.
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "fetch.fsckObjects=true",
    # Blemishes of old but honest histories; Gitaly accepts the same three.
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.zeroPaddedFilemode=ignore",
)

_SSH: Final = (
    "ssh",
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=yes",
    "-oConnectTimeout=10",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
    # A shared connection would outlive the command and escape its process group.
    "-oControlMaster=no",
    "-oControlPath=none",
    "-oControlPersist=no",
)


@dataclass(frozen=True, slots=True)
class Access:
    """The operator's settings for reaching the remote. Files are read by git at each command, so they may rotate.

    ``protocols``: the transports that git may use, by the names of git's ``GIT_ALLOW_PROTOCOL``.
    ``ssh_key`` and ``known_hosts``: private key and host keys for ssh; the account's own where left out.
    ``ca_file``: certificates (PEM) to trust for https instead of the system's.
    ``token_file``: a file with a token or password for http(s), sent as ``username`` to the remote's own host only.
    ``credential_helper``: a helper of git's instead (gitcredentials(7)).
    """

    protocols: tuple[str, ...] = ("https", "ssh", "file")
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    ca_file: Path | None = None
    token_file: Path | None = None
    username: str = "x-access-token"
    credential_helper: str = ""

    def environment(self) -> Mapping[str, str]:
        """The variables that are set for every git process, beside those of `PASSED_ON`."""
        return {
            **_FIXED_ENVIRONMENT,
            "GIT_ALLOW_PROTOCOL": ":".join(self.protocols),
            "GIT_SSH_COMMAND": shlex.join(self._ssh()),
        }

    def options(self, remote: str) -> list[str]:
        """The ``-c`` options of every git command. They name files, never what is in them."""
        own = [] if self.ca_file is None else [f"http.sslCAInfo={self.ca_file}"]
        if self.credential_helper:
            own.append(f"credential.helper={self.credential_helper}")
        origin = _origin(remote)
        if self.token_file is not None and origin is not None:
            own.append(f"credential.{origin}.helper={self._from_file(self.token_file)}")
        return [word for setting in (*_FIXED_CONFIG, *own) for word in ("-c", setting)]

    def _from_file(self, file: Path) -> str:
        """A credential helper that reads the file when git asks, so that a new token counts at once."""
        name, path = shlex.quote(f"username={self.username}"), shlex.quote(str(file.absolute()))
        return f'!f() {{ test "$1" = get && echo {name} && printf \'password=%s\\n\' "$(cat {path})"; }}; f'

    def _ssh(self) -> list[str]:
        words = list(_SSH)
        if self.ssh_key is not None:
            words += ["-oIdentitiesOnly=yes", f"-oIdentityFile={self.ssh_key}"]
        if self.known_hosts is not None:
            words += [f"-oUserKnownHostsFile={self.known_hosts}", "-oGlobalKnownHostsFile=/dev/null"]
        return words


def _origin(remote: str) -> str | None:
    """Scheme, host and port of an http(s) remote: whom its credentials are for."""
    parts = urlsplit(remote)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def unset_inherited() -> list[str]:
    """A command prefix that takes away what git should not inherit.

    GitPython always hands the whole environment of this process on; only names appear in the argument list, so no
    value of a variable can be read from the process table.
    """
    unwanted = sorted(os.environ.keys() - PASSED_ON)
    return ["env", *(word for name in unwanted for word in ("-u", name))]
