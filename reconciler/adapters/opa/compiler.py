"""`OpaCompiler`: the port `Compiler` on a private OPA. Many candidates go into one bundle; whoever spoils it is taken
out and judged alone, so that one bad policy costs the others nothing but time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from reconciler.adapters.opa.process import Loaded, OpaProcess
from reconciler.adapters.opa.remedies import one_a_place, with_remedy
from reconciler.adapters.opa.trees import tree_of
from reconciler.core import namespace
from reconciler.core.clashes import data_clashes, describe_clashes
from reconciler.core.documents import Documents, check_documents
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.limits import Limits
from reconciler.core.model import DATA_FILE, REGO_FILE, FileError, PolicyName, Verdict
from reconciler.core.ports import Candidate
from reconciler.core.rego_text import declared_package

log = logging.getLogger(__name__)

_OLDEST: Final = (1, 4)
_V0_WORDS: Final = ("keyword is required before", "keyword is required for")
"""How OPA says that a module is written for Rego v0."""
_TREES: Final = 4 * 2**20
"""Bytes of syntax trees that are looked at together."""
_CLASH: Final = "conflicting rule for data path"
"""How OPA says that a rule and data claim one path."""
_V0_WARNING: Final = "is Rego v0: add `import rego.v1` and write `if` and `contains` (`opa fmt --v0-v1` does it)"


@dataclass(frozen=True, slots=True)
class _Item:
    """A candidate whose documents are sound, with the Rego version that it is tried under."""

    candidate: Candidate
    documents: Documents
    version: int = 1

    @property
    def policy(self) -> PolicyName:
        return self.candidate.policy

    @property
    def file(self) -> str:
        return f"{self.policy}/{REGO_FILE}"


@dataclass(frozen=True, slots=True)
class _Found:
    """What the tree of a policy shows; ``tree`` only where data clash with it."""

    item: _Item
    findings: tuple[namespace.Finding, ...]
    clash: bool
    tree: Mapping[str, Any]


class OpaCompiler:
    """``async with OpaCompiler(binary) as compiler``. The process is started again when it died or was stuck.

    ``check_timeout`` is how many seconds one policy may take; a policy that takes longer is invalid.
    """

    def __init__(self, binary: Path, *, limits: Limits | None = None, check_timeout: float = 10.0) -> None:
        self._binary = binary
        self._limits = limits or Limits()
        self._timeout = check_timeout
        self._process: OpaProcess | None = None
        self._lock = asyncio.Lock()
        self._count = 0
        self._version: str | None = None
        self._platform: tuple[Candidate, _Item] | None = None

    async def __aenter__(self) -> Self:
        await self._check_version()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def check(self) -> None:
        """See `Compiler.check`."""
        await self._check_version()

    async def aclose(self) -> None:
        """End the process. May be called again."""
        await self._stop()

    async def version(self) -> str:
        """See `Compiler.version`."""
        if self._version is None:
            output = (await self._run("version"))[0].decode(errors="replace")
            found = re.search(r"Version: (\S+)", output)
            if found is None:
                raise TransientError(f"{self._binary} does not tell its version", reason="CompilerUnavailable")
            self._version = found.group(1)
        return self._version

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        """See `Compiler.validate`."""
        async with self._lock:
            verdicts, items = await self._examine(candidates)
            beside = await self._beside(platform) if platform else None
            verdicts.update(await self._batch(items, beside))
            return verdicts

    async def together(self, candidates: Sequence[Candidate]) -> Mapping[PolicyName, Verdict]:
        """See `Compiler.together`."""
        async with self._lock:
            verdicts, items = await self._examine(candidates)
            blame: dict[PolicyName, Verdict] = {}
            while items:
                try:
                    loaded = await self._load(items, None)
                except TimeoutError as error:
                    raise TransientError(
                        f"compiling {len(items)} policies together took too long",
                        reason="CompilerUnavailable",
                        remedy="Raise policy.compile_timeout, or set policy.namespace to enforce.",
                    ) from error
                if loaded.active:
                    return verdicts | await self._inspect(items)
                items = self._without(items, loaded, blame, verdicts)
            return verdicts

    async def _examine(self, candidates: Sequence[Candidate]) -> tuple[dict[PolicyName, Verdict], list[_Item]]:
        """What the documents alone refuse, and the rest. In a thread: a bad data.json of 1 MiB takes a second."""
        checked = await asyncio.to_thread(
            lambda: [check_documents(each.policy, each.content, self._limits) for each in candidates]
        )
        pairs = list(zip(candidates, checked, strict=True))
        refused = {each.policy: Verdict(documents.errors) for each, documents in pairs if documents.errors}
        return refused, [_Item(each, documents) for each, documents in pairs if not documents.errors]

    def _without(
        self,
        items: list[_Item],
        loaded: Loaded,
        blame: dict[PolicyName, Verdict],
        verdicts: dict[PolicyName, Verdict],
    ) -> list[_Item]:
        """The set without those that OPA blames; each is tried as Rego v0 before it goes. When OPA blames nobody, all
        go: nothing is live that was not seen to compile."""
        blamed = _blamed(loaded)
        culprits = {item.policy for item in items if {item.file, f"{item.policy}/{DATA_FILE}"} & blamed}
        kept: list[_Item] = []
        for item in items:
            if culprits and item.policy not in culprits:
                kept.append(item)
                continue
            own = [e for e in loaded.errors if str((e.get("location") or {}).get("file", "")).lstrip("/") == item.file]
            verdict = Verdict(self._errors(item, Loaded(False, loaded.message, tuple(own))))
            if item.version and culprits:
                blame[item.policy] = verdict
                kept.append(_Item(item.candidate, item.documents, 0))
            else:
                old = any(words in str(blame.get(item.policy, verdict).errors) for words in _V0_WORDS)
                verdicts[item.policy] = verdict if old else blame.get(item.policy, verdict)
        return kept

    # --- judging -----------------------------------------------------------------------------------------------------

    async def _beside(self, platform: Candidate) -> _Item:
        """The platform under the Rego version that it compiles under; it was judged before."""
        if self._platform is None or self._platform[0] != platform:
            item = _Item(platform, check_documents(platform.policy, platform.content, self._limits))
            if not (await self._load([item], None)).active:
                item = _Item(platform, item.documents, 0)
            self._platform = (platform, item)
        return self._platform[1]

    async def _batch(self, items: list[_Item], platform: _Item | None) -> dict[PolicyName, Verdict]:
        """Judge all in one bundle; who spoils it is judged alone."""
        verdicts: dict[PolicyName, Verdict] = {}
        while len(items) > 1:
            try:
                loaded = await self._load(items, platform)
            except TimeoutError:
                break
            if loaded.active:
                return verdicts | await self._inspect(items)
            blamed = _blamed(loaded)
            culprits = [item for item in items if item.file in blamed or f"{item.policy}/{DATA_FILE}" in blamed]
            if not culprits:
                break
            for item in culprits:
                verdicts[item.policy] = await self._alone(item, platform)
            items = [item for item in items if item not in culprits]
        for item in items:
            verdicts[item.policy] = await self._alone(item, platform)
        return verdicts

    async def _alone(self, item: _Item, platform: _Item | None) -> Verdict:
        try:
            first = await self._load([item], platform)
            if first.active:
                return (await self._inspect([item]))[item.policy]
            old = _Item(item.candidate, item.documents, 0)
            second = await self._load([old], platform)
            if second.active:
                return (await self._inspect([old]))[item.policy]
        except TimeoutError:
            message = f"compiling took longer than {self._timeout:g} s: simplify the policy"
            return Verdict((FileError(item.file, message, 1, 1),), lasting=False)
        chosen = second if any(words in str(first.errors) for words in _V0_WORDS) else first
        clashes = await self._clashes(item) if _CLASH in f"{chosen.message} {chosen.errors}" else ()
        return Verdict(clashes or self._errors(item, chosen))

    async def _clashes(self, item: _Item) -> tuple[FileError, ...]:
        """The keys of ``data.json`` for which OPA refuses the policy, told at the key; it names only the rule."""
        located = await self._parse(item)
        if located is None or item.documents.data is None or item.candidate.content.data is None:
            return ()
        texts = (item.documents.rego or "", item.candidate.content.data.decode())
        return describe_clashes(item.policy, located, item.documents.data, texts, self._limits)

    async def _inspect(self, items: Sequence[_Item]) -> dict[PolicyName, Verdict]:
        """The namespaces and data of policies that compile; their trees are looked at together, as many as are small
        beside the largest one that may come."""
        verdicts: dict[PolicyName, Verdict] = {}
        group: list[tuple[_Item, bytes]] = []
        process = await self._running()
        for number, item in enumerate(items, 1):
            group.append((item, await process.module(item.file)))
            if number == len(items) or sum(len(module) for _, module in group) > _TREES:
                for found in await asyncio.to_thread(self._look, group):
                    verdicts[found.item.policy] = await self._verdict(found)
                group = []
        return verdicts

    def _look(self, group: Sequence[tuple[_Item, bytes]]) -> list[_Found]:
        """What is wrong in each tree; the tree itself only where something is: many are large."""
        looked = []
        for item, module in group:
            tree = tree_of(module)
            findings = namespace.find(tree, item.policy, self._limits.refused_builtins)
            data = item.documents.data
            clash = data is not None and bool(data_clashes(item.policy, tree, data))
            looked.append(_Found(item, findings, clash, tree if clash else {}))
        return looked

    async def _verdict(self, found: _Found) -> Verdict:
        item, data = found.item, found.item.documents.data
        errors: list[FileError] = []
        warnings: list[FileError] = []
        if found.findings or found.clash:
            located = await self._parse(item)
            strays = self._strays(item, located, found.findings)
            (errors if self._limits.namespace == "enforce" else warnings).extend(strays)
            if found.clash and data is not None and item.candidate.content.data is not None:
                texts = (item.documents.rego or "", item.candidate.content.data.decode())
                errors.extend(describe_clashes(item.policy, located or found.tree, data, texts, self._limits))
        if item.version == 0:
            old = FileError(item.file, _V0_WARNING, 1, 1)
            (errors if self._limits.rego_v0 == "refuse" else warnings).append(old)
        return Verdict(tuple(errors[: self._limits.errors]), tuple(warnings), item.version)

    def _strays(
        self, item: _Item, located: Mapping[str, Any] | None, findings: tuple[namespace.Finding, ...]
    ) -> list[FileError]:
        """An error for each finding, where it stands in the file."""
        declared = declared_package(item.documents.rego or "")
        line = (item.documents.rego or "")[: declared.offset].count("\n") + 1 if declared else 1
        places = namespace.places(located, item.policy, self._limits.refused_builtins, findings) if located else []
        errors: list[FileError] = []
        for finding in findings:
            spots = [place for found, place in places if found == finding] or [(line, 1)]
            message = namespace.describe(finding, item.policy)
            errors.extend(FileError(item.file, message, *spot) for spot in spots)
        return errors

    def _errors(self, item: _Item, loaded: Loaded) -> tuple[FileError, ...]:
        """OPA's own errors, as ours."""
        errors = [_error(item, error) for error in one_a_place(loaded.errors)]
        if not errors:
            found = re.search(rf"{re.escape(item.file)}:(\d+): (.*)", loaded.message)
            line = int(found.group(1)) if found else None
            message = found.group(2) if found else loaded.message or "OPA refuses it"
            errors = [FileError(item.file, with_remedy(message, item.policy), line)]
        return tuple(errors[: self._limits.errors])

    # --- OPA ---------------------------------------------------------------------------------------------------------

    async def _load(self, items: Sequence[_Item], platform: _Item | None) -> Loaded:
        """Load a bundle of these; a process that died meanwhile is started again and asked once more."""
        every = [*items, *([platform] if platform else [])]
        allowed = self._timeout + 0.1 * len(every)
        for attempt in (1, 2):
            process = await self._running()
            self._count += 1
            revision = str(self._count)
            bundle = await asyncio.to_thread(_bundle, every, revision)
            try:
                return await process.load(revision, bundle, allowed)
            except TimeoutError:
                await self._stop()
                raise
            except TransientError:
                await self._stop()
                if attempt == 2:  # noqa: PLR2004 the second attempt
                    raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    async def _running(self) -> OpaProcess:
        if self._process is not None and not self._process.running:
            log.warning("compiler ended, starting another")
            await self._stop()
        if self._process is None:
            process = OpaProcess(self._binary)
            try:
                await process.start()
            except BaseException:
                await process.stop()
                raise
            self._process = process
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        self._version = None  # another binary may lie there by the time that another process is started
        if process is not None:
            await process.stop()

    async def _parse(self, item: _Item) -> Mapping[str, Any] | None:
        """The parsed tree with locations; ``None`` when OPA does not give one (then errors stand at the package)."""
        flags = ["--v0-compatible"] if item.version == 0 else []
        output, status = await self._run(
            *("parse", "--format", "json", "--json-include", "locations", *flags, "/dev/stdin"),
            given=item.candidate.content.rego,
        )
        with contextlib.suppress(ValueError):
            tree = json.loads(output)
            if status == 0 and isinstance(tree, dict):
                return tree
        return None

    async def _run(self, *words: str, given: bytes = b"") -> tuple[bytes, int]:
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._binary),
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise StalledError(
                f"{self._binary} cannot be run: {error.strerror}", reason="OpaNotFound", remedy="Set REGOPS_OPA."
            ) from error
        try:
            async with asyncio.timeout(self._timeout):
                output, _ = await process.communicate(given)
        except TimeoutError:
            output = b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return output, process.returncode or 0

    async def _check_version(self) -> None:
        version = await self.version()
        found = re.match(r"(\d+)\.(\d+)", version)
        if found and (int(found.group(1)), int(found.group(2))) < _OLDEST:
            raise StalledError(f"OPA {version} is too old", reason="OpaTooOld", remedy="Use OPA 1.4 or newer.")


def _bundle(items: Sequence[_Item], revision: str) -> bytes:
    """The tar in which they would be served; it owns every root, so that a wrong package is ours to name."""
    manifest = {
        "revision": revision,
        "roots": [""],
        "rego_version": 1,
        "file_rego_versions": {item.file: 0 for item in items if item.version == 0},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, ".manifest", json.dumps(manifest).encode())
        for item in items:
            _add(tar, item.file, item.candidate.content.rego)
            if item.candidate.content.data is not None:
                _add(tar, f"{item.policy}/{DATA_FILE}", item.candidate.content.data)
    return gzip.compress(buffer.getvalue(), 1)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _blamed(loaded: Loaded) -> set[str]:
    """The files that OPA's errors (or its message) name."""
    files = {str((error.get("location") or {}).get("file", "")).lstrip("/") for error in loaded.errors}
    return files | set(re.findall(r"((?:platform|projects/[a-z0-9-]+)/(?:rego\.rego|data\.json))", loaded.message))


def _error(item: _Item, error: Mapping[str, Any]) -> FileError:
    place = error.get("location") or {}
    file = str(place.get("file") or item.file).lstrip("/")
    message = with_remedy(str(error.get("message") or "OPA refuses it"), item.policy)
    if file != item.file:
        return FileError(item.file, f"{message} (at {file}:{place.get('row')})")
    # At the end of a file OPA counts columns from 0.
    return FileError(file, message, place.get("row"), max(1, int(place.get("col") or 1)))
