"""Names that come from files: classes, columns and the files themselves."""

import unicodedata
from collections.abc import Iterable

# Control characters, surrogates (bytes that are not UTF-8) and the two line separators of Unicode.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}


def check_names(names: Iterable[str], origin: object) -> None:
    """Raise ValueError for a name that a config would evaluate, or that no terminal can show."""
    for name in names:
        if "${" in name or name == "???":
            raise ValueError(f"{origin}: {name!r} cannot be used as a name: a config would evaluate it; rename it")
        if name != printable(name):
            reason = "it has control characters or is not UTF-8"
            raise ValueError(f"{origin}: {name!r} cannot be used as a name: {reason}; rename it")


def printable(name: str) -> str:
    r"""Return a name with an escape such as ``\x1b`` for each character that no terminal or UTF-8 file can hold."""
    escaped = (c.encode("unicode_escape").decode() if unicodedata.category(c) in UNPRINTABLE else c for c in name)
    return "".join(escaped)
