"""Where the slow half of a policy runs: in a thread of the receiver, or in a process of its own.

On a CPU the slow half computes under Python's lock between its kernels, and a fast loop in the same
process waits for it; in a process of its own it cannot. On a GPU a thread does: the kernels of both
halves then share one device by streams with priorities, which two processes cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from common.wire import Buffer
from policies.base import DualRatePolicy, Features
from receiver.decoding import Decoder

__all__ = ["Encoder", "EncoderError", "LocalEncoder"]


class EncoderError(RuntimeError):
    """The slow half cannot be used; the message is one line."""


class Encoder(Protocol):
    """Turns compressed pictures and an instruction into features; used by the slow loop alone."""

    @property
    def where(self) -> str:
        """`thread` or `process`."""
        ...

    def encode(self, jpegs: Mapping[str, Buffer], task: str) -> Features:
        """One slow pass.

        Args:
            jpegs: a picture of each view.
            task: the instruction.

        Raises:
            MalformedMessage: a picture that cannot be decoded.
            EncoderError: the slow half is gone; it is started again by the next call.
            Exception: whatever the policy raises.
        """
        ...

    def figures(self) -> dict[str, object]:
        """What the summary is to say of it."""
        ...

    def close(self) -> None:
        """End what it started; a pass in another thread ends with an EncoderError."""
        ...


class LocalEncoder:
    """The slow half in the calling thread."""

    where = "thread"

    def __init__(self, policy: DualRatePolicy) -> None:
        """Use this policy's slow half."""
        self._policy = policy
        self._decoder = Decoder(policy.spec.image_size)

    def encode(self, jpegs: Mapping[str, Buffer], task: str) -> Features:
        """Decode the pictures and run the pass here."""
        return self._policy.encode(self._decoder.decode(jpegs), task)

    def figures(self) -> dict[str, object]:
        """Where it runs."""
        return {"where": self.where}

    def close(self) -> None:
        """Let go of the decoding threads."""
        self._decoder.close()
