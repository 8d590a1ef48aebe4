"""What `opa test` loads: what would be live, in the form in which it is published, and the unit tests beside it.

Nothing else of a policy's folder: a helper that is never published would let tests pass that say nothing of production.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.model import DATA_FILE, REGO_FILE, PolicyName
from reconciler.core.plan import Target
from reconciler.core.ports import Source


@dataclass(frozen=True, slots=True)
class Tested:
    """Files by their names below the folder of the policies; ``v0``: the policies among ``published`` in Rego v0."""

    published: Mapping[str, bytes]
    tests: Mapping[str, bytes]
    v0: frozenset[str] = frozenset()

    def without(self, tests: Collection[str]) -> Tested:
        """The same without some tests."""
        return Tested(self.published, {n: text for n, text in self.tests.items() if n not in tests}, self.v0)


async def files_of(
    source: Source,
    targets: Mapping[PolicyName, Target],
    tests: Mapping[PolicyName, Mapping[str, bytes]],
    held: Collection[str],
) -> Tested:
    """``targets``, and the tests of those that are not ``held``: of a version that is not live nothing is asked."""
    published: dict[str, bytes] = {}
    for name, target in targets.items():
        content = await source.read(target.blobs)
        published[f"{name}/{REGO_FILE}"] = content.rego
        if content.data is not None:
            published[f"{name}/{DATA_FILE}"] = content.data
    return Tested(
        published=published,
        tests={
            f"{name}/{file}": text
            for name, files in tests.items()
            if name in targets and name not in held
            for file, text in files.items()
        },
        v0=frozenset(f"{name}/{REGO_FILE}" for name, target in targets.items() if target.rego_version == 0),
    )


def write(files: Tested, folder: Path, v0_tests: Collection[str]) -> None:
    """Write them below ``folder`` as a bundle. The manifest says what is Rego v0, as that of a served bundle does."""
    for name, text in (*files.published.items(), *files.tests.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    versions = {f"/{name}": 0 for name in sorted({*files.v0, *v0_tests})}
    manifest = {"roots": [""], "rego_version": 1, "file_rego_versions": versions}
    (folder / ".manifest").write_text(json.dumps(manifest), encoding="utf-8")
