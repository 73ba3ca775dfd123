"""The overrides of a sweep, which may have several values."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


def parse_overrides(loader: Any, params: dict[str, Any], arguments: list[str]) -> dict[str, Override]:
    """Return the overrides of a sweep by key: those of its config, with those of the command line on top."""
    texts = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    return {override.get_key_element(): override for override in overrides}
