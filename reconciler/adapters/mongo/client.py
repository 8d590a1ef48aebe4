"""The connection, a deadline on every call, and pymongo's errors in our own words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from bson.errors import BSONError
from pymongo import AsyncMongoClient, IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidName,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)

from reconciler.core.errors import RegopsError, StalledError, TransientError

Document = dict[str, Any]
Collection = AsyncCollection[Document]

_AUTHENTICATION_FAILED: Final = 18
_ATLAS_ERROR: Final = 8000
_UNAUTHORIZED: Final = 13
_OTHER_INDEX: Final = frozenset({85, 86})
DUPLICATE: Final = 11000

_URI_REMEDY: Final = "Correct mongo.uri (REGOPS_MONGO_URI), or the file that mongo.uri_file names."


class MongoDatabase:
    """One database; connects when it is first used. ``timeout``: seconds that any one call may take. Writes are
    acknowledged by a majority and retried once by the driver, as MongoDB recommends: all of ours may be repeated.
    """

    def __init__(
        self, uri: str, database: str = "regops", *, timeout: float = 5.0, ca_file: Path | None = None
    ) -> None:
        """Raises `StalledError` (``InvalidSettings``) for a URI that is none."""
        options: dict[str, Any] = {"tlsCAFile": str(ca_file)} if ca_file else {}
        self._timeout = timeout
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                uri,
                appname="regops",
                tz_aware=True,
                timeoutMS=int(timeout * 1000),
                serverSelectionTimeoutMS=int(timeout * 1000),
                w="majority",
                retryWrites=True,
                **options,
            )
            self._database = self._client[database]
        except (ConfigurationError, InvalidName, ValueError, TypeError, OSError) as error:
            raise StalledError(
                f"mongo.uri cannot be used: {type(error).__name__}", reason="InvalidSettings", remedy=_URI_REMEDY
            ) from error

    def collection(self, name: str) -> Collection:
        """A collection of this database."""
        return self._database[name]

    async def aclose(self) -> None:
        """Close every connection. May be called again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._client.close()

    async def ensure(self, collection: Collection, indexes: Iterable[IndexModel]) -> None:
        """Make the indexes that are not there."""
        with translated():
            await collection.create_indexes(list(indexes))

    async def expire(self, collection: Collection, key: str, seconds: int) -> None:
        """Let documents end so many seconds after the date in ``key``, whatever held before."""
        with translated():
            try:
                await collection.create_indexes([IndexModel([(key, 1)], name=f"{key}_ttl", expireAfterSeconds=seconds)])
            except OperationFailure as error:
                if error.code not in _OTHER_INDEX:
                    raise
                index = {"name": f"{key}_ttl", "expireAfterSeconds": seconds}
                await self._database.command("collMod", collection.name, index=index)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise pymongo's errors as ours."""
    try:
        yield
    except (PyMongoError, BSONError, OverflowError, UnicodeError) as error:
        raise _ours(error) from error
    except TimeoutError as error:  # asyncio's own, from below pymongo
        raise _away("no answer in time") from error


def _ours(error: Exception) -> RegopsError:
    if isinstance(error, ConnectionFailure | ExecutionTimeout | WTimeoutError):
        return _away(_first_words(error))
    if isinstance(error, OperationFailure):
        return _refused(error)
    if isinstance(error, ConfigurationError):  # of a DNS record that is looked up when first used
        return _away(_first_words(error))
    return StalledError(
        f"MongoDB cannot take this: {_first_words(error)}",
        reason="RecordRefused",
        remedy="Please report it.",
    )


def _refused(error: OperationFailure) -> RegopsError:
    words = _first_words(error)
    if error.code == _AUTHENTICATION_FAILED or (error.code == _ATLAS_ERROR and "auth" in words):
        return StalledError(
            "MongoDB refuses the user or password of mongo.uri", reason="AuthenticationFailed", remedy=_URI_REMEDY
        )
    if error.code == _UNAUTHORIZED:
        return StalledError(
            f"MongoDB does not permit it: {words}",
            reason="PermissionDenied",
            remedy="Give the user of mongo.uri the role readWrite on mongo.database.",
        )
    if error.code in _OTHER_INDEX:
        return StalledError(
            f"MongoDB has another index in the place of ours: {words}",
            reason="RecordRefused",
            remedy="Drop that index in mongo.database: regops makes its own.",
        )
    if error.has_error_label("RetryableWriteError") or error.timeout:
        return _away(words)
    return StalledError(
        f"MongoDB refuses it: {words}",
        reason="RecordRefused",
        remedy="Is it MongoDB 6 or newer, is there room, may the user write to mongo.database?",
    )


def _away(words: str) -> TransientError:
    return TransientError(
        f"MongoDB is out of reach: {words}",
        reason="RecordUnavailable",
        remedy="Is it up, does Atlas let this address in, is mongo.uri right?",
    )


def _first_words(error: Exception) -> str:
    """What the driver says, without the topology that it adds: at most a line."""
    return (
        str(error).partition(", Timeout:")[0].partition(" (configured timeouts")[0].partition(", full error")[0][:300]
    )
