"""Names that come from files: classes, columns and the files themselves."""

from collections.abc import Iterable

from runs.format import printable


def check_names(names: Iterable[str], origin: object) -> None:
    """Raise ValueError for a name that a config would evaluate or a terminal cannot show."""
    for name in names:
        if "${" in name or name == "???":
            raise ValueError(f"{origin}: {name!r} cannot be used as a name: a config would evaluate it; rename it")
        if name != printable(name):
            reason = "it has control characters or is not UTF-8"
            raise ValueError(f"{origin}: {name!r} cannot be used as a name: {reason}; rename it")
