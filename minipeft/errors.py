"""The one kind of error that a person can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong. The message says what was given, what was expected and what to do.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """


class Diverged(UserError):
    """Training ran off to a loss that is not finite."""


def unknown(what: str, given: object, known: Iterable[str], hint: str = "") -> UserError:
    """An error for a name that is not among the known ones; it suggests the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"Unknown {what} {str(given)!r}.{suggestion} Known: {', '.join(names)}.{' ' + hint if hint else ''}"
    )
