"""Which objects of the library can be copied, compared and sent to another process. The tables cover every
public class."""

import copy
import inspect
import json
import pickle
import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest

import tender
from tender import (
    Backend,
    BlockFd,
    BlockFile,
    BootTimeline,
    ConfigError,
    Console,
    Counters,
    Device,
    DeviceError,
    DeviceKind,
    ExitReason,
    GuestFailed,
    GuestFault,
    GuestRates,
    HostError,
    Image,
    ImageError,
    IsolationLayer,
    KvmUnavailable,
    ManifestError,
    NetFd,
    NetRing,
    RunningGuest,
    RunState,
    Segment,
    Tap,
    TenderError,
    Trap,
    Vm,
    VmConfig,
    VmPool,
    VmResult,
    VmStateError,
)  # fmt: skip
from tender.backend import trial
from tender.values import Value

ZERO: dict[str, Any] = dict.fromkeys(Counters.__slots__, 0) | {"hypercalls": {"puts": 1}}
RESULT = VmResult(
    reason=ExitReason.EXIT, status=3, guest_status=3, message="", trap=None, console=b"\xff\n",
    backend=Backend.SANDBOX, isolation=(IsolationLayer.UID,), counters=Counters(**ZERO),
    boot=BootTimeline(**dict.fromkeys(BootTimeline.__slots__, 1)),
)  # fmt: skip
HINTS: Any = {"code": "c", "hint": "h", "command_hint": "--h"}

SENDABLE: list[object] = [
    VmConfig(mem="64M", args=("a", "\udcff"), net={"n": Tap("t")}, block=BlockFile("d"), require=("kvm",)),
    Tap("tap0", mac="02:00:00:00:00:01"),
    BlockFile("disk.img", read_only=True, raw=True),
    Device(name="service0", kind="net", handle=1),
    Segment(**dict.fromkeys(Segment.__slots__, 7)),
    RESULT,
    RESULT.counters,
    RESULT.boot,
    Trap(**dict.fromkeys(Trap.__slots__, 7)),
    GuestFault(rip=1, instruction="0f", registers={"rax": 1}),
    RunningGuest(**dict.fromkeys(RunningGuest.__slots__, 7)),  # type: ignore[arg-type]
    GuestRates(seconds=1.0, cpu_percent=2.0, counters={"exits": 3.0}, hypercalls={"puts": 4.0}),
    *(kind("what", **HINTS) for kind in (TenderError, ConfigError, VmStateError)),
    ImageError("what", file="app.elf", offset=9, **HINTS),
    ManifestError("what", missing=(("service0", "net"),), **HINTS),
    *(kind("what", errno=5, **HINTS) for kind in (HostError, KvmUnavailable, DeviceError)),
    GuestFailed("what", RESULT),
]
COPIED_ONLY: list[Value] = [NetFd(3), BlockFd(3), VmConfig(net=NetFd(3), block={"b": BlockFd(4)})]
ENUMERATIONS = (Backend, Console, DeviceKind, ExitReason, IsolationLayer, NetRing, RunState)
OWNERS = (Image, Vm, VmPool)


def same(a: object, b: object) -> bool:
    if isinstance(a, BaseException):
        return type(a) is type(b) and str(a) == str(b) and a.__dict__ == b.__dict__
    return type(a) is type(b) and a == b and hash(a) == hash(b)


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda it, n=n: pickle.loads(pickle.dumps(it, protocol=n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
]  # fmt: skip


@pytest.mark.parametrize("it", SENDABLE, ids=lambda it: type(it).__name__)
def test_values_and_errors_are_equal_after_a_copy_and_in_another_process(it: object) -> None:
    for way in COPIES:
        assert same(way(it), it)


@pytest.mark.parametrize(
    "it", [it for it in SENDABLE if isinstance(it, TenderError)], ids=lambda it: type(it).__name__
)
def test_a_traceback_shows_the_hint_of_an_error_once_also_of_a_copy(it: TenderError) -> None:
    for error in (it, *(way(it) for way in COPIES)):
        shown = "".join(traceback.format_exception(error))
        assert shown.count("\nhint: h\n") == bool(it.hint)
        assert str(error) == it.message and "hint" not in repr(error)


@pytest.mark.parametrize("word", [word for kind in ENUMERATIONS for word in kind], ids=repr)
def test_a_member_of_an_enumeration_behaves_like_its_string(word: StrEnum) -> None:
    text = word.value
    assert word == text and text == word and hash(word) == hash(text)
    assert {text: 1}[word] == 1 and word in [text]
    assert (str(word), f"{word}", "%s" % word, word.encode()) == (text, text, text, text.encode())  # noqa: UP031
    assert repr([word]) == repr([text])
    assert json.dumps({word: [word]}) == json.dumps({text: [text]})
    for way in COPIES:
        assert way(word) is word


@pytest.mark.parametrize("it", COPIED_ONLY, ids=lambda it: type(it).__name__)
def test_a_value_with_a_descriptor_can_be_copied_but_not_sent(it: Value) -> None:
    for way in COPIES[:2]:
        assert same(way(it), it)
    for way in COPIES[2:]:
        with pytest.raises(TypeError, match="holds a descriptor of this process and cannot be pickled"):
            way(it)


def test_an_owner_of_resources_can_neither_be_copied_nor_sent() -> None:
    with Image.from_bytes(trial.elf()) as image:
        with (
            Vm(image, VmConfig(mem=4), backend="sandbox") as vm,
            VmPool(image, VmConfig(mem=4), backend="sandbox") as pool,
        ):
            with pool.take() as taken:
                for it in (image, vm, pool, taken, [vm], {"vm": vm}):
                    for way in COPIES if not isinstance(it, (list, dict)) else COPIES[1:]:
                        with pytest.raises(TypeError, match="cannot be copied or pickled: it owns"):
                            way(it)


def test_the_tables_contain_every_public_class() -> None:
    public = {it for name in tender.__all__ if inspect.isclass(it := getattr(tender, name))}
    assert {type(it) for it in [*SENDABLE, *COPIED_ONLY]} | {*OWNERS, *ENUMERATIONS} == public
