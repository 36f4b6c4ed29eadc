"""What the commands that train do alike: print what is said, go on later, end with one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from common import cli

__all__ = ["carry_out"]


def carry_out(train: Callable[[], Iterable[str]], work: Path) -> int:
    """Print the lines of a training as they come; the exit code.

    Args:
        train: begins it, and gives its lines. Whatever takes seconds to import is imported in it.
        work: the folder that it goes on from when it was stopped.
    """
    try:
        for line in train():
            print(line, flush=True)
    except ValueError as error:  # what is wrong with the data or the checkpoint, in words
        cli.fail(" ".join(str(error).split()))
    except OSError as error:
        cli.fail(f"{error.filename or work}: {error.strerror or error}")
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {work}", file=sys.stderr)
        return 130
    return 0
