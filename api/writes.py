"""PUT, PATCH, DELETE, :rollback and :validate: every write is a commit. The handlers read the request and give the
answer; what happens in between is `reconciler.writer`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from aiohttp import web

from api import bodies, keys, schemas
from api.audited import ATTEMPT, Attempt
from api.auth import Action
from api.differences import restorable
from api.diffs import unified
from api.envelope import REQUEST_ID
from api.patch import merged, patched, replaced
from api.preconditions import Preconditions
from api.problems import CONTENT_TYPE, ProblemError, problem_of
from api.progress import Sync
from api.requests import TRACE, authorized, caller_of, choice, flag, policy_of, seconds
from reconciler.core.errors import RefusalError
from reconciler.core.model import DATA_FILE, REGO_FILE, BlobIds, Content, PolicyName
from reconciler.core.ports import Range
from reconciler.core.versions import Version
from reconciler.edits import Current, KeyHash, OutcomeUnknownError, Preview, Write, Written
from reconciler.idempotency import ANSWER_BYTES, Answer, Claim, KeyOf

LIVE_SECONDS: Final = 5.0
ACTIVE_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 60.0
_MERGE: Final = "application/merge-patch+json"
_KEY_LENGTH: Final = 255
_NOT_KEPT: Final = frozenset({401, 403, 429})
_SERVER_ERRORS: Final = 500
_REPLAYED: Final = "replayed"
_RESERVED: Final = 512
"""Bytes of a kept answer that its headers and field names may take."""

Decide = Callable[[Current], Content | None]


@dataclass(frozen=True, slots=True)
class Change:
    """What a request asks for. ``restored`` is the version that a rollback brings back."""

    decide: Decide
    restored: Version | None = None


Prepare = Callable[[], Awaitable[Change]]
"""Looks up what the change needs; not called for a request whose answer is known already."""


async def put(request: web.Request) -> web.Response:
    """Create or replace: 201 or 200. An update needs ``If-Match``."""
    policy = await _authorized(request, Action.WRITE)
    conditions = Preconditions.of(request.headers)
    body = await bodies.read(request, bodies.PUT)

    def decide(current: Current) -> Content:
        conditions.check_put(current.etag)
        return replaced(body.policy, current.content)

    return await _change(request, policy, _ready(decide), body.raw)


async def patch(request: web.Request) -> web.Response:
    """Replace ``rego`` or ``data``, or merge by RFC 7396."""
    policy = await _authorized(request, Action.WRITE)
    conditions = Preconditions.of(request.headers)
    body = await bodies.read(request, bodies.PATCH)

    def decide(current: Current) -> Content:
        conditions.check_change(current.etag)
        if current.content is None:
            raise AssertionError("unreachable: a missing policy was refused")
        change = merged if request.content_type == _MERGE else patched
        return change(body.policy, current.content)

    return await _change(request, policy, _ready(decide), body.raw)


async def delete(request: web.Request) -> web.Response:
    """Remove a project's policy: 204."""
    policy = await _authorized(request, Action.WRITE)
    conditions = Preconditions.of(request.headers)

    def decide(current: Current) -> None:
        conditions.check_change(current.etag)

    return await _change(request, policy, _ready(decide), b"")


async def rollback(request: web.Request) -> web.Response:
    """PUT the text of an earlier version: 200, or 201 where the policy was deleted since. Needs ``If-Match`` as PUT."""
    policy = await _authorized(request, Action.ROLLBACK)
    conditions = Preconditions.of(request.headers)
    wanted = (await bodies.read_object(request, schemas.RollbackBody)).version

    async def prepare() -> Change:
        stored = await restorable(request, policy, wanted)

        def decide(current: Current) -> Content | None:
            conditions.check_put(current.etag)
            return stored.content

        return Change(decide, stored.version)

    return await _change(request, policy, prepare, b"" if wanted is None else str(wanted).encode())


async def delete_platform(request: web.Request) -> web.Response:
    """Never: every project may stand on it."""
    await _authorized(request, Action.WRITE)
    headers = {"Allow": "GET, HEAD, PUT, PATCH"}
    raise ProblemError(405, "method_not_allowed", "the platform's policy cannot be deleted", headers=headers)


async def validate(request: web.Request) -> web.Response:
    """The verdict that a PUT would get; nothing is written."""
    policy = await _authorized(request, Action.VALIDATE)
    body = await bodies.read(request, bodies.PUT)
    change = Change(lambda current: replaced(body.policy, current.content))
    preview = await request.app[keys.WRITER].preview(_write(request, policy, change, None))
    return web.json_response(
        {
            "valid": not preview.errors,
            "errors": [asdict(error) for error in preview.errors],
            "warnings": [asdict(warning) for warning in preview.warnings],
        }
    )


# --- one write -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wish:
    """How long the caller wants to wait, and for what."""

    sync: Sync
    seconds: float


def _ready(decide: Decide) -> Prepare:
    async def prepare() -> Change:
        return Change(decide)

    return prepare


async def _change(request: web.Request, policy: PolicyName, prepare: Prepare, raw: bytes) -> web.Response:
    wish = _wish(request)
    if flag(request, "dry_run"):
        change = await prepare()
        preview = await request.app[keys.WRITER].preview(_write(request, policy, change, None))
        return await _dry_run(policy, preview, change.restored)
    with request.app[keys.GATE].enter(caller_of(request).id):
        answer = await _once(request, policy, prepare, raw)
    headers = dict(answer.headers)
    if "Policy-Commit" not in headers:
        return web.Response(status=answer.status, text=answer.body, headers=headers, content_type=CONTENT_TYPE)
    reached = await request.app[keys.PROGRESS].reach(policy, headers["Policy-Commit"], wish.sync, wish.seconds)
    headers["Policy-Sync"] = str(reached)
    if not answer.body:
        return web.Response(status=answer.status, headers=headers)
    return web.Response(status=answer.status, text=answer.body, headers=headers, content_type="application/json")


async def _once(request: web.Request, policy: PolicyName, prepare: Prepare, raw: bytes) -> Answer:
    """Run the request; with an idempotency key at most once, whichever replica it reaches."""
    key = _key(request, raw)
    if key is None:
        # Without etcd nothing could go live: refused before anything is sent.
        await request.app[keys.STORE].read(Range(request.app[keys.KEYSPACE].applied, keys_only=True))
        return await _run(request, policy, prepare, None)
    ledger = request.app[keys.LEDGER]
    claim = await ledger.begin(key, patience=LIVE_SECONDS)
    if isinstance(claim, Answer):
        _note_replay(request[ATTEMPT], claim)
        return _replayed(claim)
    answer = await _claimed(request, policy, prepare, key.hash, claim)
    return _replayed(answer) if request[ATTEMPT].result == _REPLAYED else answer


def _replayed(answer: Answer) -> Answer:
    return Answer(answer.status, answer.body, {**answer.headers, "Idempotent-Replay": "true"})


def _note_replay(attempt: Attempt, answer: Answer) -> None:
    """For the audit event: which commit was told again, or which refusal."""
    attempt.commit, attempt.etag_after = answer.headers.get("Policy-Commit"), answer.headers.get("ETag")
    attempt.result = _REPLAYED
    if attempt.commit is None:
        attempt.etag_after, attempt.result = None, str(json.loads(answer.body)["code"])


async def _claimed(request: web.Request, policy: PolicyName, prepare: Prepare, key: KeyHash, claim: Claim) -> Answer:
    """Run and keep the answer, refusals too; an end that may be another one next time frees the key."""
    ledger = request.app[keys.LEDGER]
    kept = False
    try:
        try:
            answer = await _run(request, policy, prepare, key)
        except RefusalError as error:
            problem = problem_of(error)
            if problem is None or problem.status in _NOT_KEPT or problem.status >= _SERVER_ERRORS:
                raise
            answer = _kept(problem, request[REQUEST_ID])
            request[ATTEMPT].result = problem.code
        kept = await ledger.finish(claim, answer)
    finally:
        if not kept:
            await ledger.abandon(claim)
    return answer


async def _run(request: web.Request, policy: PolicyName, prepare: Prepare, key: KeyHash | None) -> Answer:
    attempt = request[ATTEMPT]
    change = await prepare()
    write = replace(_write(request, policy, change, key), attempt=attempt.id)
    try:
        written = await request.app[keys.WRITER].write(write)
    except OutcomeUnknownError as error:
        attempt.commit = error.commit
        raise
    attempt.etag_before, attempt.etag_after = _etag(written.before), _etag(written.after)
    attempt.commit, attempt.result = written.commit, _result(written)
    return _answer(policy, written, change.restored)


def _write(request: web.Request, policy: PolicyName, change: Change, key: KeyHash | None) -> Write:
    caller, old = caller_of(request), change.restored
    return Write(
        policy=policy,
        decide=change.decide,
        note=f"roll back to version {old.version}" if old else "",
        restores=f"{old.version} {old.info.commit}" if old else "",
        author=caller.identity(),
        actor=caller.sub,
        request_id=request[REQUEST_ID],
        key=key,
        trace=request.get(TRACE),
    )


def _answer(policy: PolicyName, written: Written, restored: Version | None) -> Answer:
    headers = {"Policy-Commit": written.commit}
    if written.after is None:
        return Answer(204, "", headers)
    headers["ETag"] = written.after.etag
    document = {
        "policy": policy,
        "etag": written.after.etag,
        "commit": written.commit,
        "warnings": [asdict(warning) for warning in written.warnings],
        **_restored(restored),
    }
    return Answer(201 if written.before is None else 200, _bounded(document, "warnings"), headers)


def _kept(problem: ProblemError, request_id: str) -> Answer:
    """A refusal as it is kept, and given the first time too: what is too long loses its last errors."""
    document = json.loads(problem.text(request_id))
    return Answer(problem.status, _bounded(document, "errors"), problem.headers)


def _bounded(document: dict[str, Any], entries: str) -> str:
    """The document's text; entries beyond what can be kept are left out, from the end."""
    text = json.dumps(document, ensure_ascii=False)
    while len(text.encode()) > ANSWER_BYTES - _RESERVED and document[entries]:
        document[entries] = document[entries][:-1]
        text = json.dumps(document, ensure_ascii=False)
    return text


def _result(written: Written) -> str:
    """The audit event's word."""
    if written.replayed:
        return _REPLAYED
    if not written.changed:
        return "unchanged"
    return "deleted" if written.after is None else "created" if written.before is None else "updated"


def _restored(version: Version | None) -> dict[str, Any]:
    return {"version": version.version} if version else {}


def _etag(blobs: BlobIds | None) -> str | None:
    return blobs.etag if blobs else None


# --- what the request says -------------------------------------------------------------------------------------------


async def _authorized(request: web.Request, action: Action) -> PolicyName:
    """The policy, once the caller may do this to it."""
    policy = policy_of(request)
    await authorized(request, policy, action)
    return policy


def _wish(request: web.Request) -> _Wish:
    word = choice(request, "wait", ("none", "live", "active"), "live")
    usual = ACTIVE_SECONDS if word == "active" else LIVE_SECONDS
    return _Wish(Sync.PENDING if word == "none" else Sync(word), seconds(request, "timeout", usual, LONGEST_SECONDS))


def _key(request: web.Request, raw: bytes) -> KeyOf | None:
    """The idempotency key; the request that it stands for is everything that decides about the write."""
    text = request.headers.get("Idempotency-Key")
    if text is None:
        return None
    if not text.isascii() or not text.isprintable() or not 1 <= len(text) <= _KEY_LENGTH:
        raise ProblemError(400, "validation_error", f"Idempotency-Key must be 1 to {_KEY_LENGTH} printable characters")
    names = ("If-Match", "If-None-Match", "Content-Type")
    said = "\n".join(f"{name}: {', '.join(request.headers.getall(name, []))}" for name in names)
    return KeyOf.of(
        caller_of(request).id,
        text,
        request.method,
        request.path,
        said.encode("utf-8", "surrogateescape") + b"\n\n" + raw,
    )


# --- dry run ---------------------------------------------------------------------------------------------------------


async def _dry_run(policy: PolicyName, preview: Preview, restored: Version | None) -> web.Response:
    """The verdict and the commit's diff."""
    after = preview.content.blob_ids().etag if preview.content else None
    return web.json_response(
        {
            "valid": not preview.errors,
            "errors": [asdict(error) for error in preview.errors],
            "warnings": [asdict(warning) for warning in preview.warnings],
            "diff": await asyncio.to_thread(_diff, policy, preview.current.content, preview.content),
            "etag_before": preview.current.etag,
            "etag_after": after,
            **_restored(restored),
        }
    )


def _diff(policy: PolicyName, before: Content | None, after: Content | None) -> str:
    """What ``git diff`` would show, file by file."""
    old = {REGO_FILE: before.rego if before else None, DATA_FILE: before.data if before else None}
    new = {REGO_FILE: after.rego if after else None, DATA_FILE: after.data if after else None}
    return "".join(
        unified(f"{policy}/{file}", old[file], new[file]) for file in (REGO_FILE, DATA_FILE) if old[file] != new[file]
    )
