"""YAML text as plain values."""

from __future__ import annotations

from typing import Any

__all__ = ["load_yaml"]


def load_yaml(text: str | bytes) -> Any:
    """What a YAML document says: mappings, lists and scalars. No object of another type is made.

    Raises:
        ValueError: It is not YAML, or a scalar in it is not of its type; one line says what is wrong.
    """
    import yaml

    # The constructors of PyYAML let through what int(), datetime() and lookups raise: "2001-99-99", "!!bool maybe".
    errors = (yaml.YAMLError, AttributeError, LookupError, ArithmeticError, RecursionError, TypeError, ValueError)
    try:
        return yaml.safe_load(text)
    except errors as error:
        raise ValueError(" ".join(str(error).split())) from error
