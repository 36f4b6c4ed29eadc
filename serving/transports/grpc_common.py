"""What both ends of the gRPC transport agree on beyond LeRobot's service."""

from __future__ import annotations

from typing import Any

from serving.messages import RefusalKind

__all__ = ["END_METHOD", "END_SERVICE", "MAX_PART", "OURS", "REFUSAL", "SESSION", "STATUS"]
__all__ += ["metadata_value", "method"]

END_SERVICE = "dualrate.Session"
END_METHOD = f"/{END_SERVICE}/End"
"""Ends a session at once, `Empty` in and out: LeRobot's service has nothing for it, so that its
clients' sessions keep their policies until the server has heard nothing of them for a while."""

SESSION = "dualrate-session"
"""Metadata of each call of our clients: 32 hexadecimal digits, the same after reconnecting."""
OURS = "dualrate"
"""Metadata of the answer to Ready that says which encoding of ours the server understands."""
REFUSAL = "dualrate-refusal"
"""Trailing metadata of a refusal: its kind."""
MAX_PART = 4 << 20
"""Bytes of one gRPC message, a margin included: LeRobot cuts at 2 MiB."""

STATUS: dict[RefusalKind, str] = {
    "bad_message": "INVALID_ARGUMENT",
    "no_session": "FAILED_PRECONDITION",
    "bad_policy": "INVALID_ARGUMENT",
    "not_found": "NOT_FOUND",
    "busy": "RESOURCE_EXHAUSTED",
    "failed": "INTERNAL",
    "timed_out": "DEADLINE_EXCEEDED",
    "not_allowed": "UNAUTHENTICATED",
}
"""Kind of refusal → name of the gRPC status."""


def metadata_value(metadata: Any, key: str) -> str | None:
    """The first value under a key (lower case) as text; None where there is none."""
    for name, value in metadata or ():
        if name == key:
            return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
    return None


def method(name: str) -> str:
    """The full name of one of the service's methods."""
    return f"/transport.AsyncInference/{name}"
