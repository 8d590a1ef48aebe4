"""Who calls, and may they: tokens are verified, the built-in rule is kept, the platform's own policy may narrow it."""

from api.auth.authorizer import Action, Authorizer, may_read, path_segments, permits
from api.auth.caller import ADMIN_ROLE, Caller
from api.auth.opening import Access, open_access
from api.auth.verifier import Verifier, authorization_of

__all__ = [
    "ADMIN_ROLE",
    "Access",
    "Action",
    "Authorizer",
    "Caller",
    "Verifier",
    "authorization_of",
    "may_read",
    "open_access",
    "path_segments",
    "permits",
]
