"""Bases of what the library gives out: immutable values, and owners of what cannot be copied."""

from dataclasses import dataclass, field
from typing import NoReturn, Self, TypeVar, dataclass_transform

_V = TypeVar("_V", bound="Value")


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
def value(kind: type[_V]) -> type[_V]:
    """Makes a dataclass of a Value.

    A Value whose constructor takes other types than its fields have declares both by itself.
    """
    return dataclass(kw_only=True, slots=True, eq=False, repr=False)(kind)


class Owner:
    """A base of what owns descriptors, memory or processes. A copy would give them back a second time."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it owns descriptors and memory of this process"
        )


class Value:
    """An immutable record: the constructor sets each field, a name in `__slots__`, once.

    It is not a frozen dataclass, because one with slots raises TypeError in Python 3.11 for a name that is not a field.
    """

    __slots__: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name) or name not in self.__slots__:
            raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def _fields(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def _with(self, **fields: object) -> Self:
        """Returns this value with other values of these fields, which the caller has checked."""
        return _made(type(self), self._fields() | fields)

    def to_dict(self) -> dict[str, object]:
        """Returns the fields by name as plain data for JSON, and nested values as dicts too."""
        return {name: plain(value) for name, value in self._fields().items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and type(other) is type(self) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), *(it for it in self._fields().values() if not isinstance(it, dict))))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self._fields().items())
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_made, (type(self), self._fields()))


def _made(cls: type[_V], fields: dict[str, object]) -> _V:
    made = object.__new__(cls)
    for name, it in fields.items():
        setattr(made, name, it)
    return made


def plain(value: object) -> object:
    """Returns `value` as json.dumps() takes it: values become dicts, and bytes become text (latin-1)."""
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value
