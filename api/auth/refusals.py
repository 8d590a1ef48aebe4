"""The answers to those who may not: 401 with a challenge (RFC 6750 section 3) and 403. No token is ever repeated."""

from __future__ import annotations

import re
from typing import Final

from api.problems import ProblemError

CHALLENGE: Final = 'Bearer realm="regops"'

_NOT_DESCRIBING = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")


def no_token() -> ProblemError:
    """Nothing was presented: the bare challenge, without an error code (RFC 6750 section 3.1)."""
    message = "this needs a token: send the header `Authorization: Bearer <token>`"
    return ProblemError(401, "unauthorized", message, headers={"WWW-Authenticate": CHALLENGE})


def invalid_token(why: str) -> ProblemError:
    """Something was presented that does not count; ``why`` says what is wrong in words of ours."""
    described = _NOT_DESCRIBING.sub("'", why)
    challenge = f'{CHALLENGE}, error="invalid_token", error_description="{described}"'
    return ProblemError(401, "unauthorized", why, headers={"WWW-Authenticate": challenge})


def forbidden(why: str) -> ProblemError:
    """The caller is known and may not."""
    return ProblemError(403, "forbidden", why)
