"""A base for immutable values: equality, hash, repr and pickling from `__slots__`.

The run road may not import dataclasses (importing it costs more than a boot), so the few public value
classes stand on this instead. Subclasses list their fields in `__slots__` and set them with `_set`.
"""

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from typing import NoReturn, Self


class Owner:
    """A base for what owns descriptors, memory or processes: a second object with the same would give them back twice."""

    def __reduce_ex__(self, protocol: object) -> "NoReturn":
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it owns descriptors and memory of this process"
        )


class Value:
    """An immutable record; its fields are the names in `__slots__`, in order."""

    __slots__: tuple[str, ...] = ()

    def _set(self, **fields: object) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, fields[name])

    def _with(self, **fields: object) -> "Self":
        """The same with other values of these fields, which the caller has checked."""
        value = object.__new__(type(self))
        value._set(
            **{name: fields[name] if name in fields else getattr(self, name) for name in self.__slots__}
        )
        return value

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def to_dict(self) -> dict[str, object]:
        """The fields by name, values nested inside turned into dicts as well: ready for JSON."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self._fields()))


def _restore(cls: type[Value], fields: tuple[object, ...]) -> Value:
    value = object.__new__(cls)
    value._set(**dict(zip(cls.__slots__, fields, strict=True)))
    return value


def plain(value: object) -> object:
    """`value` as something json.dumps takes: values become dicts, bytes become text (latin-1)."""
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value
