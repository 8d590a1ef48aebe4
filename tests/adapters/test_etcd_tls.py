"""TLS to etcd: who is trusted, and what a person is told when nobody is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.certificates import Authority
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import StalledError, StoreError
from reconciler.core.ports import Put, Range, Transaction

Files = tuple[Path | None, Path | None, Path | None]


@dataclass
class Guarded:
    """An etcd that wants certificates of ``ours``."""

    server: EtcdServer
    ours: Authority
    theirs: Authority
    client: tuple[Path, Path]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = Authority(folder / "ours"), Authority(folder / "theirs", "another CA")
    certificate, key = ours.issue("server")
    client = ours.issue("client")
    flags = ["--cert-file", str(certificate), "--key-file", str(key)]
    flags += ["--trusted-ca-file", str(ours.ca), "--client-cert-auth"]
    server = EtcdServer(folder / "etcd", flags=flags, tls=ours.context(*client))
    try:
        server.start()
        yield Guarded(server, ours, theirs, client)
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def connected(
    endpoint: str, ca: Path | None, cert: Path | None = None, key: Path | None = None, *, seconds: float = 1.5
) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(
        [endpoint], ca_file=ca, cert_file=cert, key_file=key, read_timeout=seconds, commit_timeout=seconds
    )
    try:
        yield store
    finally:
        await store.aclose()


async def test_with_the_right_files_everything_works(guarded: Guarded, prefix: str) -> None:
    async with connected(guarded.server.endpoint, guarded.ours.ca, *guarded.client) as store:
        written = await store.commit(Transaction((), (Put(prefix, b"1"),)))
        async with store.watch(Range(prefix), from_revision=written.revision) as batches:
            assert (await asyncio.wait_for(anext(batches), 5)).events[0].kv.value == b"1"
        assert (await store.health()).warnings == ()


CASES: dict[str, tuple[Callable[[Guarded], Files], str, str]] = {
    "wrong CA": (lambda g: (g.theirs.ca, *g.client), "not signed by the CA in etcd.ca_file", "Set etcd.ca_file"),
    "no CA": (lambda _: (None, None, None), "not signed by the CA in etcd.ca_file", "Set etcd.ca_file"),
    "no client certificate": (lambda g: (g.ours.ca, None, None), "refuses the client certificate", "etcd.cert_file"),
    "client of another CA": (
        lambda g: (g.ours.ca, *g.theirs.issue("client")),
        "refuses the client certificate",
        "--trusted-ca-file",
    ),
    "expired client": (
        lambda g: (g.ours.ca, *g.ours.issue("expired", days=-1)),
        "refuses the client certificate",
        "etcd.cert_file",
    ),
    "key of another certificate": (
        lambda g: (g.ours.ca, g.client[0], g.theirs.issue("client")[1]),
        "TLS files cannot be used",
        "etcd.key_file",
    ),
    "no certificate at all": (lambda g: (g.client[1], *g.client), "TLS files cannot be used", "etcd.ca_file"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_connection_that_is_not_trusted_says_what_is_wrong(guarded: Guarded, case: str) -> None:
    """Neither a read nor a write leaves; and a person's repair of a file must be enough, so it is tried again."""
    files, words, remedy = CASES[case]
    async with connected(guarded.server.endpoint, *files(guarded), seconds=0.8) as store:
        calls = (store.read(Range("/k")), store.commit(Transaction((), (Put("/k", b""),))))
        for failed in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failed, StoreError)
            assert failed.reason == "TlsFailed"
            assert words in failed.message
            assert remedy in failed.remedy
            assert guarded.server.endpoint in failed.message


async def test_a_certificate_for_another_host_is_not_trusted(guarded: Guarded, tmp_path: Path) -> None:
    certificate, key = guarded.ours.issue("elsewhere", address="192.0.2.1")
    flags = ["--cert-file", str(certificate), "--key-file", str(key)]
    server = EtcdServer(tmp_path / "etcd", flags=flags, tls=guarded.ours.context(*guarded.client))
    server.launch()
    try:
        async with asyncio.timeout(15), connected(server.endpoint, guarded.ours.ca) as store:
            words = ""
            while "refused" in words or not words:  # until it listens
                with pytest.raises(StoreError) as failed:
                    await store.read(Range("/k"))
                words = str(failed.value)
        assert "its certificate is for another host" in words
    finally:
        server.stop()


async def test_tls_to_an_etcd_without_it_says_so(etcd_server: EtcdServer, guarded: Guarded) -> None:
    endpoint = etcd_server.endpoint.replace("http:", "https:")
    async with connected(endpoint, guarded.ours.ca) as store:
        with pytest.raises(StoreError, match="seems to speak no TLS"):
            await store.read(Range("/k"))


async def test_no_tls_to_an_etcd_with_it_says_so(guarded: Guarded) -> None:
    async with connected(guarded.server.endpoint.replace("https:", "http:"), None) as store:
        with pytest.raises(StoreError, match="https://"):
            await store.read(Range("/k"))


async def test_renewed_certificates_are_used_without_a_restart(guarded: Guarded, tmp_path: Path) -> None:
    """Short-lived certificates are replaced on disk, long before anybody restarts a server."""
    files = [tmp_path / name for name in ("ca", "cert", "key")]
    old = (guarded.theirs.ca, *guarded.theirs.issue("client"))
    for file, source in zip(files, old, strict=True):
        file.write_bytes(source.read_bytes())
    async with connected(guarded.server.endpoint, *files) as store:
        with pytest.raises(StoreError):
            await store.read(Range("/k"))
        for file, source in zip(files, (guarded.ours.ca, *guarded.client), strict=True):
            file.write_bytes(source.read_bytes())
        await store.read(Range("/k"))


async def test_a_file_that_is_missing_is_named(guarded: Guarded) -> None:
    missing = guarded.ours.folder / "missing.pem"
    async with connected(guarded.server.endpoint, missing) as store:
        for call in (store.read(Range("/k")), store.commit(Transaction((), ())), store.health()):
            with pytest.raises(StalledError, match=r"etcd\.ca_file: .*missing\.pem: No such file"):
                await call
        async with store.watch(Range("/k"), from_revision=1) as batches:
            with pytest.raises(StalledError):
                await asyncio.wait_for(anext(batches), 5)


def test_files_that_cannot_matter_are_refused(guarded: Guarded) -> None:
    """A password would go through the network in clear, while the settings look as if it did not."""
    with pytest.raises(StalledError, match=r"etcd\.ca_file is set, and http://127\.0\.0\.1:2379 uses no TLS"):
        EtcdStore(["https://127.0.0.1:2379", "http://127.0.0.1:2379"], ca_file=guarded.ours.ca)
    with pytest.raises(StalledError, match="belong together"):
        EtcdStore(["https://127.0.0.1:2379"], cert_file=guarded.client[0])
