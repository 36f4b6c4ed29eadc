"""Recorded sessions on disk: writing them so that a kill loses nothing, reading, recovering.

A session is a folder, `async_inference_YYYYMMDD_HHMMSS`, of one episode; docs/sessions.md describes
its files. Everything in it is read as untrusted: bounded, checked, never unpickled.
"""

from common.session.frames import FrameEntry
from common.session.layout import SessionError
from common.session.reader import Session, find_sessions, newest_at
from common.session.rows import Samples, States

__all__ = [
    "FrameEntry",
    "Samples",
    "Session",
    "SessionError",
    "States",
    "find_sessions",
    "newest_at",
]
