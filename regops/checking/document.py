"""A review as JSON: the shape is documented in docs/pull-requests.md."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from api.texts import dump
from reconciler.core.model import FileError
from regops.checking.findings import PolicyFinding, Replay, Review, Tests


def document(review: Review) -> dict[str, Any]:
    """snake_case; what was not asked for is null."""
    return {
        "passed": review.passed,
        "base": review.base,
        "head": review.head,
        "merged_into": review.tip,
        "notes": list(review.notes),
        "total_policies": review.total,
        "policies": [_policy(review, each) for each in review.policies],
        "warnings": [_error(review, each) for each in review.warnings],
        "ignored_files": [f"{review.path}/{each}" for each in review.ignored],
        "blocked_deletions": list(review.blocked),
        "blocked_reason": review.blocked_reason or None,
        "tests": _tests(review, review.tests) if review.tests else None,
        "replay": _replay(review.replay) if review.replay else None,
    }


def as_json(review: Review) -> str:
    """The document, indented."""
    return json.dumps(document(review), indent=2, ensure_ascii=False)


def _policy(review: Review, each: PolicyFinding) -> dict[str, Any]:
    tests = review.tests
    return {
        "policy": each.policy,
        "operation": str(each.operation),
        "valid": not each.held,
        "already_invalid": each.before,
        "deletion_blocked": each.blocked,
        "reason": each.reason or None,
        "errors": [_error(review, error) for error in each.errors],
        "tests": tests.run.get(each.policy, 0) if tests and each.tested else None,
        "coverage": tests.coverage.get(each.policy) if tests and each.tested else None,
        "rego_diff": each.rego,
        "data_changes": [json.loads(dump(dict(change))) for change in each.data],
        "data_diff": each.data_text,
    }


def _error(review: Review, error: FileError) -> dict[str, Any]:
    return {**asdict(error), "file": f"{review.path}/{error.file}"}


def _tests(review: Review, tests: Tests) -> dict[str, Any]:
    untested = {each.policy for each in review.policies if not each.tested}
    return {
        "total": tests.total,
        "failed": tests.failed,
        "skipped": tests.skipped,
        "error": tests.error or None,
        "already_error": tests.error_before,
        "failures": [
            {
                "file": f"{review.path}/{each.file}",
                "line": each.line,
                "name": each.name or None,
                "message": each.message or None,
                "already_failing": each.before,
            }
            for each in tests.failures
        ],
        "coverage": {name: share for name, share in sorted(tests.coverage.items()) if name not in untested},
        "broken_elsewhere": list(review.broken_elsewhere),
        "min_coverage": review.min_coverage,
        "below_min_coverage": list(review.uncovered),
    }


def _replay(found: Replay) -> dict[str, Any]:
    return {
        "inputs": found.inputs,
        "flips": found.flips,
        "rules": [
            {
                "policy": each.policy,
                "rule": each.rule,
                "inputs": each.inputs,
                "flips": each.flips,
                "examples": [asdict(example) for example in each.examples],
            }
            for each in found.rules
        ],
        "skipped": dict(sorted(found.skipped.items())),
        "recorded_otherwise": found.differed,
        "nondeterministic": found.nondeterministic or (None if found.changing else 0),
        "changing_builtins": {name: list(each) for name, each in found.changing.items()},
        "unreadable": found.unreadable_count,
        "other_log_lines": found.other_lines,
        "unreadable_places": list(found.unreadable),
    }
