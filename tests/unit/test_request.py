"""Compares how the native program and Python read a command line: a line that the native program accepts
means the same to both.

A line that the native program does not accept is left to Python, so that is not a difference. Both really
read the words: bindings/command/request.c is compiled here, and for solo5-hvt's names Python opens its
devices by functions that only record the request.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tender.cli import solo5
from tender.cli.option_table import FLAG, OPTIONS, Option
from tender.cli.options import (
    FLAGS,
    NAMED,
    SHORT,
    VALUED,
    RunOptions,
    ambient,
    parse_args,
)
from tender.config import BACKENDS, LAYERS, BlockFd, BlockFile, NetFd, Tap, parse_mac
from tender.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = ROOT / "bindings"

# Prints the fields of a request as byte strings that end in 0, in the order of Read.
SHOWN = """
#include <stdio.h>
#include <string.h>
#include "device_words.h"
#include "machine.h"
#include "request.h"

static const char *const layers[] = {LAYERS, NULL};
const char *isolation_name(uint32_t index);
const char *isolation_name(uint32_t index) { return layers[index]; }

static const struct machine_ops known[] = {MACHINES};
const struct machine_ops *machine_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0)
            return &known[i];
    return NULL;
}

static char *at;
static void text(const char *value, size_t len) { memcpy(at, value, len); at += len; *at++ = 0; }
static void number(double value) { at += sprintf(at, "%.17g", value) + 1; }

size_t shown(char **words, int is_solo5, char **environment, char *to);
size_t shown(char **words, int is_solo5, char **environment, char *to)
{
    struct request r = {.program = "tender", .solo5 = is_solo5};
    if (!request_read(words, environment, &r))
        return 0;
    at = to;
    number((double)r.mem_bytes);
    number(r.mem_adjusted);
    number(r.quiet);
    number(r.no_net_ring);
    number(r.net_reattach);
    number(r.debuggable);
    number(r.flight_recorder);
    number(r.backend ? (double)(r.backend - known + 1) : 0);
    number(r.require);
    number(r.timeout_s);
    number(r.lock_wait_s);
    text(r.console ? r.console : "-", strlen(r.console ? r.console : "-"));
    text(r.json ? r.json : "", r.json ? strlen(r.json) : 0);
    text(r.image ? r.image : "", r.image ? strlen(r.image) : 0);
    text(r.example ? r.example : "", r.example ? strlen(r.example) : 0);
    size_t args = 0;
    while (r.args[args])
        args++;
    number((double)args);
    for (size_t i = 0; i < args; i++)
        text(r.args[i], strlen(r.args[i]));
    number((double)r.setting_count);
    for (size_t i = 0; i < r.setting_count; i++) {
        const struct setting *s = &r.settings[i];
        struct device_settings d = DEVICE_SETTINGS_DEFAULTS;
        if (!device_configure(s->type, &d, s->option, s->value, is_solo5))
            text("refused", 7);
        text(s->option, strlen(s->option));
        text(s->name_len ? s->name : "", s->name_len);
        number(d.read_only);
        number(d.raw);
        if (strcmp(s->option, "net-mac") == 0)
            for (int b = 0; b < 6; b++)
                number(d.mac[b]);
        else if (strcmp(s->option, "block-sector-size") == 0)
            number(d.sector_size);
        else if (d.source)
            text(d.source, d.source_len ? d.source_len : strlen(d.source));
        else
            number(d.fd);
    }
    return (size_t)(at - to);
}
"""


class Device(NamedTuple):
    """One option about a device. `value` is an interface, a path, a descriptor, a sector size or the bytes
    of a MAC address."""

    kind: str
    name: bytes
    value: "bytes | int | tuple[int, ...]"
    read_only: bool = False
    raw: bool = False


class Read(NamedTuple):
    """Everything that a command line requests."""

    mem_bytes: int
    mem_adjusted: bool
    quiet: bool
    no_net_ring: bool
    net_reattach: bool
    debuggable: bool
    flight_recorder: bool
    backend: str
    require: frozenset[str]
    timeout: float
    lock_wait: float
    console: bytes
    json: bytes
    image: bytes
    example: bytes
    args: tuple[bytes, ...]
    devices: tuple[Device, ...]


Ambient = dict[str, str]  # the key is the name of parse_args()'s argument
Native = Callable[[list[bytes], bool, Ambient], "Read | None"]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    directory = tmp_path_factory.mktemp("request")
    source, library = directory / "shown.c", directory / "shown.so"
    layers = ", ".join(f'"{name}"' for name in LAYERS)
    machines = ", ".join(f'{{.name = "{name}"}}' for name in BACKENDS[1:])
    source.write_text(SHOWN.replace("LAYERS", layers).replace("MACHINES", machines))
    parts = ("core", "arch/x86_64", "devices", "guest_abi", "machine", "vm", "command")
    folders = [f"-I{folder}" for folder in (ROOT / "abi", *(BINDINGS / part for part in parts))]
    subprocess.run(
        [
            *(sys.executable, BINDINGS / "command" / "gen_options.py"),
            *(ROOT / "tender" / "cli" / "option_table.py", ROOT / "tender" / "cli" / "main.py"),
            directory / "options.h",
        ],
        check=True, timeout=60,
    )  # fmt: skip
    subprocess.run(
        ["cc", "-shared", "-fPIC", *folders, f"-I{directory}", source, BINDINGS / "command" / "request.c",
         *(path for path in (BINDINGS / "devices").rglob("*.c") if "_configure(" in path.read_text()), "-o", library],
        check=True, timeout=60,
    )  # fmt: skip
    shown = ctypes.CDLL(str(library), os.RTLD_LAZY).shown  # the functions that open devices are not linked
    shown.restype = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(1 << 16)

    def read(words: list[bytes], is_solo5: bool, ambient: Ambient) -> Read | None:
        given = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        variables = [f"TENDER_{name.upper()}={value}".encode() for name, value in ambient.items()]
        # A foreign variable, one without a value, and one of ours twice, of which only the first counts.
        variables = [b"TERM=x", b"TENDER_REQUIRE_NOT=uid", b"TENDER_BACKEND", *variables, *variables[:1]]
        environment = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
        count = shown(given, int(is_solo5), environment, buffer)
        return _parsed(iter(buffer.raw[:count].split(b"\0")[:-1])) if count else None

    return read


def _parsed(parts: Iterator[bytes]) -> Read:
    def number() -> int:
        return int(next(parts))

    mem = number()
    adjusted, quiet, no_ring, reattach, debuggable, recorder = (bool(number()) for _ in range(6))
    backend, layers = BACKENDS[number()], number()
    timeout, lock_wait = float(next(parts)), float(next(parts))
    console, json = _output(next(parts)), _output(next(parts))
    image, example = next(parts), next(parts)
    args = tuple(next(parts) for _ in range(number()))
    devices = []
    for _ in range(number()):
        kind, name, read_only, raw = next(parts).decode(), next(parts), bool(number()), bool(number())
        value: bytes | int | tuple[int, ...]
        if kind == "net-mac":
            value = tuple(number() for _ in range(6))
        elif kind == "block-sector-size":
            value = number()
        else:
            value = next(parts)
        devices.append(_device(kind, name, value, read_only, raw))
    require = frozenset(name for i, name in enumerate(LAYERS) if layers >> i & 1)
    return Read(
        mem,
        adjusted,
        quiet,
        no_ring,
        reattach,
        debuggable,
        recorder,
        backend,
        require,
        timeout,
        lock_wait,
        console,
        json,
        image,
        example,
        args,
        tuple(devices),
    )


def _output(value: bytes) -> bytes:
    """Normalises an output: `-` and fd:01 are fd:1."""
    if value == b"-":
        return b"fd:1"
    return b"fd:%d" % int(value[3:]) if value.startswith(b"fd:") else value


def _place(value: int | str | None, none: bytes) -> bytes:
    """Normalises an output in RunOptions in the same way."""
    if value is None:
        return none
    return b"fd:%d" % value if isinstance(value, int) else raw_bytes(value)


def _device(
    kind: str, name: bytes, value: "bytes | int | tuple[int, ...]", read_only: bool, raw: bool
) -> Device:
    """Makes a Device; only a disk has the last two fields."""
    return Device(kind, name, value, *((read_only, raw) if kind == "block" else (False, False)))


def raw_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def by_run(words: list[bytes], ambient: Ambient) -> Read:
    """Reads words as `tender run` does. Raises ConfigError."""
    options = parse_args([word.decode("utf-8", "surrogateescape") for word in words], **ambient)
    assert options.action == "run"
    devices = []
    for s in options.settings:
        value: bytes | int | tuple[int, ...]
        if s.what == "net-mac":
            assert isinstance(s.value, str)
            value = tuple(parse_mac(s.value))
        elif s.what == "block-sector-size":
            assert isinstance(s.value, int)
            value = s.value
        else:
            value = raw_bytes(str(s.value))
        devices.append(_device(s.what, raw_bytes(s.name), value, s.read_only, s.raw))
    assert not options.stats and options.verbosity <= 0
    return Read(
        options.mem_bytes, options.mem_adjusted, options.verbosity < 0, options.net_ring == "off",
        options.net_reattach, options.debuggable, options.flight_recorder, options.backend,
        frozenset(options.require), options.timeout or 0.0, options.lock_wait,
        _place(options.console, b"none"), _place(options.json, b""), raw_bytes(options.image), raw_bytes(options.example),
        tuple(map(raw_bytes, options.args)), tuple(devices),
    )  # fmt: skip


class _Noted:
    """Replaces the device that Python would open: it only has a descriptor's number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        pass


SOLO5_FLAGS = ("--no-net-ring", "--net-reattach")


def by_solo5(words: list[bytes], variables: Ambient, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads words as solo5-hvt does. Raises ConfigError, or its subclass UsageError."""
    noted: list[Device] = []
    name = ""

    def open_device(device: Tap | NetFd | BlockFile | BlockFd, *_: object, **__: object) -> _Noted:
        if isinstance(device, (Tap, NetFd)):
            value = raw_bytes(device.name) if isinstance(device, Tap) else str(device.fd).encode()
            noted.append(Device("net", name.encode(), value))
        else:
            value = raw_bytes(device.path) if isinstance(device, BlockFile) else str(device.fd).encode()
            noted.append(Device("block", name.encode(), value, device.read_only, device.raw))
        return _Noted(3)

    asked: dict[str, Any] = {}
    with monkeypatch.context() as patched:
        patched.setattr("tender.devices.opening.open_device", open_device)
        patched.setattr(solo5, "_check_declared", lambda *_: None)
        patched.setattr(solo5, "_check_inherited", lambda *_, **__: None)
        patched.setattr("tender.cli.say.notice", lambda _: asked.update(adjusted=True))
        patched.setattr("tender.manifest.match", lambda *_: None)
        # these check for a network to reattach after the devices are known
        patched.setattr("tender.cli.run.check_reattach", lambda _: None)
        patched.setattr("tender.config._reattaches", lambda value, _: value)
        image: Any = SimpleNamespace(
            name="", devices=(), elf=SimpleNamespace(c=None), check_fits=lambda mem: asked.update(mem=mem)
        )
        texts = [word.decode("utf-8", "surrogateescape") for word in words]
        at = 0
        while at < len(texts) and texts[at].startswith("-") and texts[at] != "--":
            at += 1
        kernel = texts[at + (texts[at : at + 1] == ["--"]) :]
        if not kernel or not kernel[0]:
            raise ConfigError("no KERNEL")
        options = RunOptions(**ambient(variables), args=tuple(kernel[1:]))
        devices = solo5._Devices(options.lock_wait)
        for word in texts[:at]:
            name = word.partition("=")[0].partition(":")[2]
            before = dict(devices._macs), dict(devices._sector_sizes)
            if not word.startswith("--mem=") and word not in SOLO5_FLAGS:
                devices.take(word, image)
            if devices._macs != before[0] or word.startswith("--net-mac:"):
                noted.append(Device("net-mac", name.encode(), tuple(parse_mac(devices._macs[name]))))
            if devices._sector_sizes != before[1] or word.startswith("--block-sector-size:"):
                noted.append(Device("block-sector-size", name.encode(), devices._sector_sizes[name]))
        plain = [text for text in texts[:at] if text.startswith("--mem=") or text in SOLO5_FLAGS]
        config = solo5._configured(image, plain, options, solo5._Devices(options.lock_wait))
    return Read(
        config.mem_bytes, bool(asked.get("adjusted")), False, config.net_ring == "off",
        config.net_reattach, config.debuggable, config.flight_recorder, options.backend, frozenset(config.require),
        0.0, config.lock_wait, b"fd:1", b"", raw_bytes(kernel[0]), b"", tuple(map(raw_bytes, kernel[1:])), tuple(noted),
    )  # fmt: skip


# ---- words

NAMES = ("", "a", "service0", "Z9", "n" * 67, "n" * 68, "a_b", "a.b", "é")
VALUES = (
    *("", "0", "1", "2", "3", "5", "8", "64", "511", "512", "513", "4094", "4095", "4096", "4097", "32768", "65536"),
    *("999999999", "1000000000", "99999999999999999999", "+5", "-5", " 5", "5 ", "0x10", "1e3", "1_0", "٣", "012"),
    *("64M", "64m", "1G", "1g", "4G", "5G", "2048K", "2048k", "1K", "64MiB", "64Mi", "8MB", "8 M", "M", "1.5G"),
    *("0.25", "250ms", "5s", ".5", "5.", ".", "1.2.3", "0ms", "0.0", "1e9", "999999999.9", "inf", "nan", "ms", "s"),
    *("0.00000000000000001", "00000000000000000005", "12345678901234567890s", "123456789012345678901", "5sms"),
    *("hello", "echo", "disk", "hell"),
    *("auto", "kvm", "sandbox", "KVM", "xen", "kvm ", "kvm,landlock", "landlock", "landlock,", ",", "uid,uid"),
    *("-", "none", "fd:1", "fd:02", "fd:", "fd:x", "fd:-1", "fd:999999999", "fd:1000000000", "./fd:1"),
    *("tap0", "a=tap0", "a b", "t" * 15, "t" * 16, "t" * 20, "@3", "@0", "@", "@x", "@-1", "@999999999"),
    *("@1000000000", "a=@3", "@3:ro", "@3:raw", "@3:raw:ro", "a=@3:raw:rw", "disk.img", "/a=b", "./@3", ":ro", ":raw"),
    *(":rw", ":raw:ro", "d:ro", "d:rw", "d:raw", "d:raw:raw", "d:ro:rw", "d:ro:raw", "d:raw:rw", "a=d:ro", "a=", "=d"),
    *("02:00:00:00:00:01", "2:0:0:0:0:1", "a=02:00:00:00:00:01", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"),
    *("02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:011", "02:00:00:00:00:0x", "0x2:0:0:0:0:1"),
    *("+2:0:0:0:0:1", " 2:0:0:0:0:1", "002:0:0:0:0:1", "02-00-00-00-00-01", "00:00:00:00:00:00", "\udcff", "é"),
)  # fmt: skip
KERNELS = ("app.elf", "", "-", "--", "-app.elf", "run", "\udcff")
value = st.sampled_from(VALUES) | st.text("0123456789abGKkMmsx:=@.,-+ ro", max_size=9)
option = st.sampled_from((*VALUED, *NAMED, *FLAGS, *SHORT, "-vv", "--frob", "--me", "--"))
word = st.one_of(
    st.builds("{}={}".format, option, value).map(lambda w: [w]),
    st.builds(lambda o, v: [o, v], option, value),
    st.builds("{}:{}={}".format, option, st.sampled_from(NAMES), value).map(lambda w: [w]),
    st.builds(lambda o, n, v: [f"{o}:{n}", v], option, st.sampled_from(NAMES), value),
    option.map(lambda w: [w]),
)
# Words that both accept more often. Without them few command lines would be read to their end.
likely = st.one_of(
    st.sampled_from(VALUES).map(lambda v: [f"--mem={v}"]),
    st.builds("--net:{}={}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)).map(lambda w: [w]),
    st.builds("--net-mac:{}={}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)).map(lambda w: [w]),
    st.builds("--block:{}={}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)).map(lambda w: [w]),
    st.builds("--block-sector-size:{}={}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)).map(lambda w: [w]),
    st.builds(lambda o, v: [f"{o}={v}"], st.sampled_from(("--timeout", "--lock-wait", "--backend", "--require")),
              st.sampled_from(VALUES)),
    st.sampled_from((["-q"], ["--quiet"], ["--no-net-ring"], ["--net-reattach"])),
    st.sampled_from((["--example=hello"], ["--example", "disk"])),
)  # fmt: skip
lines = st.builds(
    lambda words, rest: [w for group in words for w in group] + rest,
    st.lists(word | likely, max_size=3),
    st.lists(st.sampled_from(KERNELS), max_size=3),
)
variables = st.fixed_dictionaries(
    {},
    optional={
        "backend": st.sampled_from(("", "auto", "kvm", "sandbox", "xen", "KVM")),
        "require": st.sampled_from(("", "kvm", "uid,kvm", "uid,", "moats", " uid")),
        "lock_wait": st.sampled_from(("", "0", "0.0", "00", "5", "250ms", "5s", "1e1", "-1", "x", " 5")),
    },
)


@settings(max_examples=1500)
@given(words=lines, ambient=variables)
@example(words=["--lock-wait=0", "--lock-wait", "5", "app.elf"], ambient={})
def test_run_means_the_same_to_both_programs(native: Native, words: list[str], ambient: Ambient) -> None:
    given = list(map(raw_bytes, words))
    taken = native(given, False, ambient)
    assert taken is None or taken == by_run(given, ambient)


@settings(max_examples=1500)
@given(words=lines, ambient=variables)
def test_solo5_hvt_means_the_same_to_both_programs(
    native: Native, words: list[str], ambient: Ambient
) -> None:
    given = list(map(raw_bytes, words))
    taken = native(given, True, ambient)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert taken is None or taken == by_solo5(given, ambient, monkeypatch)


@pytest.mark.parametrize("is_solo5", [False, True], ids=["run", "solo5-hvt"])
def test_every_value_of_every_option_means_the_same_to_both(
    native: Native, is_solo5: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form is tried. The native program must accept many of them, otherwise this would compare
    nothing."""
    taken = 0
    for base in (*VALUED, *NAMED):
        for text in VALUES:
            for form in ([f"{base}={text}"], [base, text], [f"{base}:a={text}"], [f"{base}:a", text]):
                words = list(map(raw_bytes, [*form, "app.elf", "x"]))
                found = native(words, is_solo5, {})
                if found:
                    taken += 1
                    assert found == (by_solo5(words, {}, monkeypatch) if is_solo5 else by_run(words, {}))
    assert taken > 100


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("is_solo5", [False, True], ids=["run", "solo5-hvt"])
def test_the_native_program_accepts_exactly_the_options_of_its_rows(
    native: Native, option: Option, is_solo5: bool
) -> None:
    """It leaves an option without a native row to Python, whatever the value. It must not accept a longer
    or a shorter name either."""
    forms = [
        option.name,
        option.short,
        *(f"{option.name}{mark}{text}" for text in VALUES for mark in ("=", ":a=")),
    ]
    found = [form for form in forms if form and native([raw_bytes(form), b"app.elf"], is_solo5, {})]
    assert bool(found) == (option.native and (not is_solo5 or option.solo5 is not None))
    if option.kind == FLAG and found:
        assert found == [option.name, option.short][: 1 + bool(option.short and not is_solo5)]
    for near in (option.name + "x", option.name[:-1], option.name.upper()):
        assert not native([raw_bytes(f"{near}=1"), b"app.elf"], is_solo5, {})


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.variable], ids=lambda option: option.variable)
def test_a_variable_is_read_like_its_option(native: Native, option: Option) -> None:
    """Both programs read it, under both fronts."""
    taken = 0
    for text in VALUES:
        by_option = native([raw_bytes(f"{option.name}={text}"), b"app.elf"], False, {})
        variables = {option.field: text} if "\udcff" not in text and "é" not in text else {}
        for is_solo5 in (False, True) if text and variables else ():
            assert native([b"app.elf"], is_solo5, variables) == by_option
            taken += by_option is not None
            if by_option:
                assert by_run([b"app.elf"], variables) == by_option
    assert taken
