"""Checks a value against a JSON Schema: the part of the language that docs/schemas/ uses, and no more.

A keyword that is not known here is an error, so that no schema promises what nobody checks.
"""

import re
from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}


def problems(
    value: object, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$"
) -> list[str]:
    """Returns what is wrong with the value, one line for each fault; none if it is valid."""
    root = schema if root is None else root
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        check = _CHECKS.get(keyword)
        assert check, f"{at}: the keyword {keyword} is not known"
        found += check(value, wanted, schema, root, at)
    return found


def _ref(value: object, wanted: str, _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    target: Any = root
    for part in wanted.removeprefix("#/").split("/"):
        target = target[part]
    return problems(value, target, root, at)


def _one_of(value: object, wanted: list[Any], _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    tried = [problems(value, each, root, at) for each in wanted]
    return [] if sum(not faults for faults in tried) == 1 else [f"{at}: fits not exactly one of {tried}"]


def _type(
    value: object, wanted: str | list[str], _: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else wanted
    fits = any(
        isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))  # type: ignore[arg-type]
        for name in names
    )
    return [] if fits else [f"{at}: {value!r} is not {wanted}"]


def _properties(
    value: object, wanted: dict[str, Any], _: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        line
        for key in value.keys() & wanted.keys()
        for line in problems(value[key], wanted[key], root, f"{at}.{key}")
    ]


def _additional(
    value: object, wanted: object, schema: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    if not isinstance(value, dict):
        return []
    others = value.keys() - schema.get("properties", {}).keys()
    if wanted is False:
        return [f"{at}.{key}: not in the schema" for key in sorted(others)]
    assert isinstance(wanted, dict)
    return [line for key in others for line in problems(value[key], wanted, root, f"{at}.{key}")]


def _required(
    value: object, wanted: list[str], _: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    return [f"{at}.{key}: missing" for key in wanted if key not in value] if isinstance(value, dict) else []


def _items(
    value: object, wanted: dict[str, Any], _: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    if not isinstance(value, list):
        return []
    return [line for i, each in enumerate(value) for line in problems(each, wanted, root, f"{at}[{i}]")]


def _pattern(value: object, wanted: str, _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    return (
        [] if not isinstance(value, str) or re.search(wanted, value) else [f"{at}: {value!r} is not {wanted}"]
    )


def _enum(value: object, wanted: list[Any], _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    return [] if value in wanted else [f"{at}: {value!r} is none of {wanted}"]


def _const(value: object, wanted: object, _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    return [] if value == wanted else [f"{at}: {value!r} is not {wanted!r}"]


def _minimum(value: object, wanted: float, _: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    return (
        [f"{at}: {value!r} is below {wanted}"] if isinstance(value, (int, float)) and value < wanted else []
    )


_CHECKS: dict[str, Any] = {
    "$ref": _ref,
    "oneOf": _one_of,
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "pattern": _pattern,
    "enum": _enum,
    "const": _const,
    "minimum": _minimum,
}
