"""Who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from latentfarm.server.http.operation import Scope

#: scopes that a scope includes
_INCLUDED = {
    Scope.NONE: frozenset({Scope.NONE}),
    Scope.READ: frozenset({Scope.NONE, Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.NONE, Scope.READ, Scope.SUBMIT}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True)
class Access:
    """The sender of a request.

    Attributes:
        name: the name of the API key, ``local`` on a server without keys, empty if an operation needs no key.
        scopes: as in the keys file.
    """

    name: str
    scopes: frozenset[Scope]

    def allows(self, scope: Scope) -> bool:
        """Return whether the sender may use operations of ``scope``."""
        return scope is Scope.NONE or any(scope in _INCLUDED[own] for own in self.scopes)


#: everybody on this machine, if the server has no keys
LOCAL = Access("local", frozenset({Scope.ADMIN}))
#: the sender of a request that needs no key
ANONYMOUS = Access("", frozenset())


def access_of(request: Request) -> Access:
    """Return who sent a request whose operation has been admitted."""
    return cast("Access", request.state.access)


def keep_access(request: Request, access: Access) -> None:
    """Make ``access`` the sender of a request, also for the access log."""
    request.state.access = access
    request.state.key_name = access.name


def audit_batch(request: Request, batch: str) -> None:
    """Name the batch that a request has created, for its audit line. A batch in the path is known already."""
    request.state.audited_batch = batch
