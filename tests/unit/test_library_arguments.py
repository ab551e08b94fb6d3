"""A value of a wrong type raises ConfigError where it is given. The error names the argument and the value,
and no guest starts.

The last test compares the tables with the signatures: a new argument needs its rows.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import tender
from tender import BlockFd, BlockFile, ConfigError, Image, NetFd, Tap, Vm, VmConfig, VmPool
from tender.backend import trial
from tender.config import OtherDevice

TAP, DISK, OTHER = Tap("tap0"), BlockFile("disk.img"), OtherDevice("net", {"net": "tap0"})
NOT_TEXT: list[object] = [None, 5, b"bytes", ["x"], True]
NOT_A_NUMBER: list[object] = [None, "5", 5.0, True, [5], b"5"]
NOT_A_FLAG: list[object] = [None, 0, 1, "no", []]
NOT_WORDS: list[object] = [None, 5, "one string", b"bytes", [5], [None], [b"bytes"], (("x",),), TAP]
NOT_A_NET: list[object] = [
    "tap0",
    b"tap0",
    3,
    True,
    DISK,
    BlockFd(3),
    [TAP],
    (TAP,),
    ("tap0", TAP),
    Tap,
    VmConfig(),
]
NOT_A_BLOCK: list[object] = [
    "d.img",
    PurePosixPath("d.img"),
    3,
    False,
    TAP,
    NetFd(3),
    [DISK],
    BlockFile,
    VmConfig(),
]

FIELDS: list[tuple[Callable[..., object], str, list[object]]] = [
    (VmConfig, "mem", [None, 64.0, True, b"64", [64], 0, -2, 2**70, "", "\ud800"]),
    (VmConfig, "args", NOT_WORDS),
    (
        VmConfig,
        "net",
        [*NOT_A_NET, *({"service0": it} for it in [None, *NOT_A_NET]), {5: TAP}, {None: TAP}, {b"n": TAP}],
    ),
    (VmConfig, "devices", [5, "a", TAP, DISK, [], {"a": TAP}, {"a": None}, {5: OTHER}, {None: OTHER}]),
    (
        VmConfig,
        "block",
        [*NOT_A_BLOCK, *({"storage": it} for it in [None, *NOT_A_BLOCK]), {5: DISK}, {None: DISK}],
    ),
    (VmConfig, "net_ring", [None, True, 1, "yes", "ON", ["on"], b"on"]),
    (VmConfig, "net_reattach", NOT_A_FLAG),
    (VmConfig, "debuggable", NOT_A_FLAG),
    (VmConfig, "flight_recorder", NOT_A_FLAG),
    (VmConfig, "lock_wait", [None, "5", True, [5], b"5", -1, float("nan"), float("inf"), 1e9]),
    (VmConfig, "require", [*NOT_WORDS, ["moat"]]),
    (Tap, "name", [*NOT_TEXT, "", "tap\0"]),
    (Tap, "mac", [*NOT_TEXT[1:], "", "02:00"]),
    (NetFd, "fd", [*NOT_A_NUMBER, -1, 2**31, 2**80]),
    (NetFd, "mac", [*NOT_TEXT[1:], "", "02:00"]),
    (NetFd, "mtu", [*NOT_A_NUMBER, 67, 65536]),
    (BlockFile, "path", [*NOT_TEXT, Path, PurePosixPath, "d\0"]),
    (BlockFile, "read_only", NOT_A_FLAG),
    (BlockFile, "raw", NOT_A_FLAG),
    (BlockFile, "sector_size", [*NOT_A_NUMBER, 0, 513]),
    (BlockFd, "fd", [*NOT_A_NUMBER, -1, 2**31, 2**80]),
    (BlockFd, "read_only", NOT_A_FLAG),
    (BlockFd, "raw", NOT_A_FLAG),
    (BlockFd, "sector_size", [*NOT_A_NUMBER, 0, 513]),
    (OtherDevice, "kind", NOT_TEXT),
    (OtherDevice, "words", [5, "a", ["a"], {5: "a"}, {"words": 5}, {"words": "a\0"}]),
]
NEEDED: dict[object, dict[str, object]] = {
    Tap: {"name": "tap0"},
    NetFd: {"fd": 3},
    BlockFile: {"path": "d.img"},
    BlockFd: {"fd": 3},
    OtherDevice: {"kind": "net", "words": {}},
}


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        pytest.param(
            make, field, value, id=f"{make.__name__}-{field}-{value!r}".encode("ascii", "replace").decode()
        )
        for make, field, values in FIELDS
        for value in values
        if not (value is None and field in ("net", "block", "devices", "mac"))  # None is their default
    ],
)
def test_a_wrong_value_of_a_configuration_is_refused_by_the_constructor(
    make: Callable[..., object], field: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        make(**{**NEEDED.get(make, {}), field: value})
    names = {"sector_size": "Block size"}
    assert field in str(refused.value) or names.get(field, "MAC") in str(refused.value) or value == ""
    assert type(refused.value) is ConfigError


def test_the_table_has_a_row_for_each_field() -> None:
    rows = {(make, field) for make, field, _ in FIELDS}
    kinds = (VmConfig, Tap, NetFd, BlockFile, BlockFd, OtherDevice)
    assert rows == {(kind, field) for kind in kinds for field in inspect.signature(kind).parameters}


def test_equivalent_forms_of_values_are_accepted() -> None:
    from types import MappingProxyType

    config = VmConfig(args=["a", "b"], net=MappingProxyType({"service0": TAP}), require=["kvm"])
    assert (config.args, config.net, config.require) == (("a", "b"), (("service0", TAP),), ("kvm",))
    assert BlockFile(Path("d.img")) == BlockFile("d.img")


FULL: dict[str, Any] = {
    "mem": 64,
    "args": ("a",),
    "net": {"service0": TAP},
    "block": {"storage": DISK},
    "devices": {"other": OTHER},
    "net_ring": "inline",
    "net_reattach": True,
    "debuggable": True,
    "flight_recorder": True,
    "lock_wait": 2.5,
    "require": ("kvm",),
}


def test_with_args_keeps_every_other_field() -> None:
    assert FULL.keys() == inspect.signature(VmConfig).parameters.keys()
    full, default = VmConfig(**FULL), VmConfig()
    for name in VmConfig.__slots__:
        assert getattr(full, name) != getattr(default, name), (
            f"{name}: give FULL a value that is not the default"
        )
    assert full.with_args(("b",)) == VmConfig(**{**FULL, "args": ("b",)})
    assert full.with_args(["a"]) == full


@pytest.mark.parametrize("words", NOT_WORDS)
def test_with_args_checks_its_argument_like_the_constructor(words: Any) -> None:
    with pytest.raises(ConfigError, match="args"):
        VmConfig().with_args(words)


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.from_bytes(trial.elf()) as image:
        yield image


@pytest.mark.parametrize("what", ["app.elf", Path("app.elf"), b"\x7fELF", None, 5, Image, VmConfig()])
@pytest.mark.parametrize("owner", [Vm, VmPool])
def test_a_value_that_is_not_an_image_is_refused(owner: Any, what: object) -> None:
    with pytest.raises(ConfigError, match=f"{owner.__name__}: image .* is not an Image") as refused:
        owner(what)
    assert refused.value.hint == ("open it first: Image.open('app.elf')" if str(what) == "app.elf" else "")


@pytest.mark.parametrize("owner", [Vm, VmPool])
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("config", [64, "64M", {}, {"mem": 64}, VmConfig, TAP, 0, ""]),
        (
            "console",
            [None, "out.txt", b"out.txt", True, 1.5, -1, 2**31, 2**80, [], "captured", PurePosixPath("a\0")],
        ),
        ("backend", [None, "xen", b"kvm", True, 1, ["kvm"]]),
    ],
)
def test_a_wrong_argument_is_named(owner: Any, argument: str, values: list[object], image: Image) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=argument) as refused:
            owner(image, **{argument: value})
        assert repr(value) in str(refused.value) or repr(str(value)) in str(refused.value)


@pytest.mark.parametrize("path", [None, 5, b"app.elf", ["app.elf"], Image, "a\0"])
def test_a_value_that_is_not_a_path_is_refused(path: Any) -> None:
    for opens in (Image.open, tender.run):
        with pytest.raises(ConfigError, match=r"Image\.open: path"):
            opens(path)


@pytest.mark.parametrize("data", [None, "app.elf", 5, [1, 2]])
def test_a_value_that_is_not_bytes_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"Image\.from_bytes: .* is not bytes"):
        Image.from_bytes(data)
