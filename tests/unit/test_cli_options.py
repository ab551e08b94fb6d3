"""The command line's grammar: the values of words, and every way to get a word wrong."""

import re

import pytest

from tender.cli.attach import resolve
from tender.cli.nearest import distance, nearest
from tender.cli.options import NAMED, OPTIONS, SHORT, RunOptions, Setting, UsageError, parse_args
from tender.config import BlockFd, BlockFile, NetFd, Tap
from tender.errors import ConfigError
from tender.image import Device

MIB = 1 << 20
NET = Device(name="service0", kind="net", handle=1)
NET2 = Device(name="uplink", kind="net", handle=2)
DISK = Device(name="storage", kind="block", handle=3)


def parse(*words: str) -> RunOptions:
    return parse_args([*words, "app.elf"])


def setting(*words: str) -> Setting:
    (only,) = parse(*words).settings
    return only


# ---- the image and the guest's arguments


def test_an_image_alone_gives_the_defaults() -> None:
    options = parse_args(["app.elf"])
    assert (options.action, options.image, options.args) == ("run", "app.elf", ())
    assert (options.mem_bytes, options.mem_adjusted) == (512 * MIB, False)
    assert (options.console, options.json, options.timeout) == (1, None, None)
    assert (options.stats, options.verbosity, options.settings) == (False, 0, ())


@pytest.mark.parametrize(
    "words",
    [
        ["--mem=4", "--help", "-q", "--", "x"],
        ["", "a", "", ""],
        ["a b", "--net:service0=tap0", "\udcff"],
    ],
)
def test_words_after_the_image_are_passed_unchanged(words: list[str]) -> None:
    assert parse_args(["-q", "app.elf", *words]).args == tuple(words)


def test_two_dashes_end_the_options() -> None:
    options = parse_args(["--mem=64", "--", "-app.elf", "--", "x"])
    assert (options.image, options.args, options.mem_bytes) == ("-app.elf", ("--", "x"), 64 * MIB)
    assert options.words == ("--mem=64",)


@pytest.mark.parametrize("words", [[], ["--mem=64"], ["--"], ["--mem=64", "--"], ["", "x"]])
def test_no_image_is_a_missing_kernel_operand(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"(?m)^Missing KERNEL operand$") as refused:
        parse_args(words)
    assert refused.value.show_usage


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--mem=64", "--help", "x"]])
def test_help_ignores_the_other_words(words: list[str]) -> None:
    assert parse_args(words).action == "help"


@pytest.mark.parametrize("words", [["--version"], ["-V"]])
def test_version_ignores_the_other_words(words: list[str]) -> None:
    assert parse_args(words).action == "version"


# ---- memory, time, output


@pytest.mark.parametrize(
    ("words", "mib", "adjusted"),
    [
        (["--mem=64"], 64, False),
        (["--mem", "64"], 64, False),
        (["--mem=64M"], 64, False),
        (["--mem", "64MiB"], 64, False),
        (["--mem=64Mi"], 64, False),
        (["--mem=1G"], 1024, False),
        (["--mem=2048K"], 2, False),
        (["--mem=3"], 2, True),
        (["--mem=1"], 2, True),
        (["--mem=1K"], 2, True),
        (["--mem=4097"], 4096, True),
        (["--mem=4G"], 4096, False),
        (["--mem=8", "--mem=16"], 16, False),
        (["--mem=3", "--mem=16"], 16, False),
    ],
)
def test_memory_is_mib_or_has_a_unit_and_is_rounded_down(words: list[str], mib: int, adjusted: bool) -> None:
    options = parse(*words)
    assert (options.mem_bytes, options.mem_adjusted) == (mib * MIB, adjusted)


@pytest.mark.parametrize("value", ["0", "", "x", "-5", "64X", "1.5", "0M", "12 34", "M", "६४"])
def test_an_invalid_amount_of_memory_is_malformed(value: str) -> None:
    with pytest.raises(UsageError, match=r"(?m)^Malformed argument to --mem$") as refused:
        parse(f"--mem={value}")
    assert repr(value) in refused.value.hint


@pytest.mark.parametrize("value", ["4098", "5G", "99999999999999999999"])
def test_memory_above_4_gib_is_refused_with_the_contracts_message(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"(?m)^guest memory size \d+ bytes exceeds the max size 4294967296 bytes$"
    ):
        parse(f"--mem={value}")


@pytest.mark.parametrize(
    ("value", "seconds"), [("5", 5.0), ("0.25", 0.25), ("250ms", 0.25), ("5s", 5.0), ("1e1", 10.0)]
)
def test_timeout_is_in_seconds(value: str, seconds: float) -> None:
    assert parse(f"--timeout={value}").timeout == parse("--timeout", value).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["0", "-1", "", "soon", "nan", "inf", "1e12", "s", "ms"])
def test_an_invalid_timeout_is_malformed(value: str) -> None:
    with pytest.raises(UsageError, match=r"(?m)^Malformed argument to --timeout$"):
        parse(f"--timeout={value}")


@pytest.mark.parametrize(
    ("words", "console"),
    [
        (["--console=none"], None),
        (["--console", "fd:3"], 3),
        (["--console=out file"], "out file"),
        (["--console=-"], 1),
    ],
)
def test_console_goes_to_a_file_a_descriptor_or_nowhere(words: list[str], console: int | str | None) -> None:
    assert parse(*words).console == console


@pytest.mark.parametrize(
    ("word", "target"),
    [
        ("--json", 2),
        ("--json=fd:5", 5),
        ("--json=a=b.json", "a=b.json"),
        ("--json=-", 1),
        ("--json=./-", "./-"),
    ],
)
def test_json_goes_to_stderr_a_descriptor_or_a_file(word: str, target: int | str) -> None:
    assert parse(word).json == target


@pytest.mark.parametrize("word", ["--console=", "--console=fd:", "--console=fd:x", "--json=", "--json=fd:-1"])
def test_output_without_a_target_is_malformed(word: str) -> None:
    with pytest.raises(UsageError, match=r"^Malformed argument to --"):
        parse(word)


@pytest.mark.parametrize(
    ("words", "verbosity"),
    [(["-q"], -1), (["--quiet"], -1), (["-v"], 1), (["--verbose"], 1), (["-vv"], 1), (["-q", "-v"], 1)],
)
def test_quiet_and_verbose(words: list[str], verbosity: int) -> None:
    assert parse(*words).verbosity == verbosity


def test_no_net_ring_switches_the_ring_off() -> None:
    assert parse().net_ring == "auto"
    assert parse("--no-net-ring").net_ring == "off"


def test_debuggable_is_off_until_it_is_asked_for() -> None:
    assert not parse().debuggable
    assert parse("--debuggable").debuggable


def test_the_flight_recorder_is_off_until_it_is_asked_for() -> None:
    assert not parse().flight_recorder
    assert parse("--flight-recorder").flight_recorder


def test_net_reattach_switches_reattachment_on() -> None:
    assert not parse().net_reattach
    assert parse("--net-reattach").net_reattach


# ---- devices


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--net:service0=tap0"], ("net", "service0", "tap0", False)),
        (["--net", "service0=tap0"], ("net", "service0", "tap0", False)),
        (["--net=service0=tap0"], ("net", "service0", "tap0", False)),
        (["--net", "tap0"], ("net", "", "tap0", False)),
        (["--net=tap0"], ("net", "", "tap0", False)),
        (["--net:service0=@7"], ("net", "service0", 7, False)),
        (["--net", "@7"], ("net", "", 7, False)),
        (["--net", "br-1.2=x"], ("net", "", "br-1.2=x", False)),
        (["--net:my_net=tap0"], ("net", "my_net", "tap0", False)),
        (["--net-mac:service0=02:00:00:00:00:01"], ("net-mac", "service0", "02:00:00:00:00:01", False)),
        (["--net-mac", "service0=02:0:0:0:0:1"], ("net-mac", "service0", "02:0:0:0:0:1", False)),
        (["--net-mac", "02:00:00:00:00:01"], ("net-mac", "", "02:00:00:00:00:01", False)),
        (["--block:storage=my disk=1.img"], ("block", "storage", "my disk=1.img", False)),
        (["--block", "storage=disk.img"], ("block", "storage", "disk.img", False)),
        (["--block", "./a=b.img"], ("block", "", "./a=b.img", False)),
        (["--block", "disk.img:ro"], ("block", "", "disk.img", True)),
        (["--block:storage=disk.img:rw"], ("block", "storage", "disk.img", False)),
        (["--block:storage=odd:ro:rw"], ("block", "storage", "odd:ro", False)),
        (["--block:storage=@3:ro"], ("block", "storage", 3, True)),
        (["--block=./@3"], ("block", "", "./@3", False)),
        (["--block-sector-size:storage=4096"], ("block-sector-size", "storage", 4096, False)),
        (["--block-sector-size", "storage=4096"], ("block-sector-size", "storage", 4096, False)),
        (["--block-sector-size", "4096"], ("block-sector-size", "", 4096, False)),
    ],
)
def test_every_form_of_a_device_option(words: list[str], expected: tuple[str, str, int | str, bool]) -> None:
    found = setting(*words)
    assert (found.what, found.name, found.value, found.read_only) == expected
    assert found.option == " ".join(words)


@pytest.mark.parametrize(
    "word",
    [
        "--net:=tap0",
        "--net:service0=",
        "--net=",
        "--net:service0=@",
        "--net:service0=@x",
        "--net:service0=@-1",
        "--net-mac:service0=02:00:00:00:00",
        "--net-mac:service0=02:00:00:00:00:0g",
        "--net-mac=nonsense",
        "--net-mac=01:00:5e:00:00:01",
        "--net-mac:service0=ff:ff:ff:ff:ff:ff",
        "--block:storage=",
        "--block:storage=:ro",
        "--block:storage=@1x",
        "--block-sector-size:storage=big",
        "--block-sector-size:storage=-512",
        "--block-sector-size:storage=",
        "--net:" + "n" * 68 + "=tap0",
        "--mem:storage=5",
        "--stats=5",
        "--no-net-ring=1",
        "--net-reattach=1",
        "--net-reattach:service0",
        "--help=me",
        "-x",
        "-",
        "--frob",
        "---",
        "--=",
        "-q=1",
    ],
)
def test_a_wrong_option_is_named_as_it_was_typed(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(word)
    assert f"Invalid option: `{word}'" in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    "words",
    [["--mem"], ["--mem", "--stats"], ["--net"], ["--net:service0"], ["--block", "--"], ["--console"]],
)
def test_an_option_without_its_value_is_reported(words: list[str]) -> None:
    with pytest.raises(UsageError, match=f"(?m)^Missing argument to {words[0]}$") as refused:
        parse_args(words)
    assert "write --" in refused.value.hint


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--mme=5", "--mem"), ("--nte:a=b", "--net"), ("--blok:a=b", "--block"), ("--version1", "--version")],
)
def test_a_typing_mistake_gets_a_suggestion(word: str, meant: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(word)
    assert refused.value.hint == f"did you mean {meant}?"


def test_a_guests_option_before_the_image_gets_a_hint() -> None:
    with pytest.raises(UsageError) as refused:
        parse("--ipv4=10.0.0.2/24")
    assert refused.value.hint == "words for the guest go after the image: tender IMAGE --ipv4=10.0.0.2/24"


@pytest.mark.parametrize("word", ["-m", "--memory", "--memory=64", "--ram=1"])
def test_another_monitors_option_for_memory_is_answered_with_mem(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(word)
    assert refused.value.hint.startswith("guest memory: write --mem=")


@pytest.mark.parametrize("word", ["--cpus=2", "--vcpus", "-smp", "--cpu=1"])
def test_another_monitors_option_for_processors_is_answered(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(word)
    assert refused.value.hint == "a guest has one processor; there is no option for more"


def test_distance_counts_a_swap_as_one() -> None:
    assert distance("mem", "mme") == 1
    assert distance("", "abc") == 3
    assert distance("kitten", "sitting") == 3
    assert nearest("storage0", ["service0", "storage"]) == "storage"
    assert nearest("zzz", OPTIONS) == ""
    assert nearest("x", []) == ""


# ---- names


def resolved(
    devices: list[Device], *words: str
) -> tuple[dict[str, Tap | NetFd], dict[str, BlockFile | BlockFd]]:
    net, block, others = resolve(parse(*words).settings, devices, "app.elf")
    assert not others
    return net, block


MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("words", "net"),
    [
        (["--net:service0=tap0"], {"service0": Tap("tap0")}),
        (["--net", "tap0"], {"service0": Tap("tap0")}),
        (["--net", "@4"], {"service0": NetFd(4)}),
        (["--net", "tap0", f"--net-mac={MAC}"], {"service0": Tap("tap0", mac=MAC)}),
        ([f"--net-mac:service0={MAC}", "--net", "tap0"], {"service0": Tap("tap0", mac=MAC)}),
        (["--net", "@4", "--net-mac", MAC], {"service0": NetFd(4, mac=MAC)}),
        (["--net", "tap0", "--net-mac", "0:0:0:0:0:0"], {"service0": Tap("tap0")}),
        (["--net", "tap0", "--net:service0=tap1"], {"service0": Tap("tap1")}),
        (["--net:service0=tap1", "--net", "tap0"], {"service0": Tap("tap0")}),
        (["--net-mac", MAC], {}),
        ([], {}),
    ],
)
def test_the_only_network_needs_no_name_and_the_last_option_counts(
    words: list[str], net: dict[str, Tap]
) -> None:
    assert resolved([NET, DISK], *words) == (net, {})


@pytest.mark.parametrize(
    ("words", "block"),
    [
        (["--block", "a b.img"], BlockFile("a b.img")),
        (["--block:storage=a.img:ro"], BlockFile("a.img", read_only=True)),
        (["--block", "@5:ro"], BlockFd(5, read_only=True)),
        (["--block-sector-size", "4096", "--block", "a"], BlockFile("a", sector_size=4096)),
        (["--block", "a", "--block-sector-size:storage=1024"], BlockFile("a", sector_size=1024)),
    ],
)
def test_block_devices(words: list[str], block: BlockFile) -> None:
    assert resolved([NET, DISK], *words) == ({}, {"storage": block})


@pytest.mark.parametrize(
    ("devices", "words", "hint"),
    [
        (
            [NET, DISK],
            ["--net:servce0=tap0"],
            "did you mean --net:service0=tap0?\napp.elf declares: net service0, block storage",
        ),
        ([DISK, NET], ["--net:zz=tap0"], "app.elf declares: net service0, block storage"),
        ([NET, DISK], ["--net:storage=tap0"], "storage is a block device: use --block:storage=..."),
        ([], ["--block:storage=x"], "app.elf declares no devices"),
        ([NET], [f"--net-mac:other={MAC}"], "app.elf declares: net service0"),
    ],
)
def test_an_undeclared_name_is_answered_with_the_declared_ones(
    devices: list[Device], words: list[str], hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        resolved(devices, *words)
    first, second = refused.value.message.split("\n")
    assert first.startswith("Resource not declared in manifest: '")
    assert second == f"Invalid option: `{words[0]}'"
    assert refused.value.hint == hint


def test_a_device_without_a_name_is_refused_if_there_are_two() -> None:
    with pytest.raises(UsageError, match=r"^app\.elf declares 2 network devices: say which") as refused:
        resolved([NET, NET2], "--net", "@3")
    assert refused.value.hint == "--net:service0=@3\n--net:uplink=@3"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        *(
            (word, word)
            for word in ("d.img", "d.img:ro", "d.img:raw", "d.img:raw:ro", "@5", "@5:ro", "@5:raw:ro")
        ),
        ("d.img:rw", "d.img"),
        ("d.img:raw:rw", "d.img:raw"),
    ],
)
@pytest.mark.parametrize("count", [0, 2])
def test_a_hint_keeps_the_options_of_a_disk(typed: str, shown: str, count: int) -> None:
    """A pasted hint must not open a read-only disk for writing, and must not refuse a raw disk."""
    devices = [DISK, Device(name="second", kind="block", handle=4)][:count] or [NET]
    with pytest.raises(UsageError) as refused:
        resolved(devices, "--block", typed)
    if count:
        assert refused.value.hint == f"--block:storage={shown}\n--block:second={shown}"
    else:
        assert refused.value.hint == "app.elf declares: net service0"


def test_a_device_without_a_name_is_refused_if_there_is_none() -> None:
    with pytest.raises(UsageError, match=r"^app\.elf declares no block device") as refused:
        resolved([NET], "--block", "disk.img")
    assert refused.value.hint == "app.elf declares: net service0"


@pytest.mark.parametrize("size", ["0", "511", "513", "768", "65536"])
def test_a_sector_size_that_is_not_a_power_of_two_is_refused(size: str) -> None:
    with pytest.raises(UsageError) as refused:
        resolved([DISK], "--block=a", f"--block-sector-size:storage={size}")
    assert refused.value.message == (
        "Block size must be a multiple of 2 greater than or equal 512\n"
        f"Invalid option: `--block-sector-size:storage={size}'"
    )


# ---- the backend


def test_the_default_backend_is_auto() -> None:
    assert parse().backend == "auto"
    assert parse_args(["app.elf"], backend="").backend == "auto"


@pytest.mark.parametrize("name", ["auto", "kvm", "sandbox"])
def test_the_environment_sets_the_default_backend_and_the_option_overrides_it(name: str) -> None:
    assert parse_args(["app.elf"], backend=name).backend == name
    assert parse_args([f"--backend={name}", "app.elf"], backend="nonsense").backend == name
    assert parse_args(["--backend", name, "app.elf"]).backend == name


@pytest.mark.parametrize("name", ["KVM", "xen", "kvm ", "sandbox,kvm"])
def test_an_unknown_backend_is_refused_in_option_and_environment(name: str) -> None:
    with pytest.raises(UsageError, match=r"(?m)^Malformed argument to --backend$") as by_option:
        parse(f"--backend={name}")
    assert by_option.value.hint == f"got {name!r}: write --backend=auto, --backend=kvm or --backend=sandbox"
    with pytest.raises(UsageError, match=r"(?m)^Malformed value of TENDER_BACKEND$") as by_environment:
        parse_args(["app.elf"], backend=name)
    assert by_environment.value.hint == (
        f"got {name!r}: write TENDER_BACKEND=auto, TENDER_BACKEND=kvm or TENDER_BACKEND=sandbox, or unset it"
    )


def test_help_ignores_the_environment() -> None:
    assert parse_args(["--help"], backend="nonsense").action == "help"


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0.0), ("5", 5.0), ("0.25", 0.25), ("250ms", 0.25), ("3s", 3.0)]
)
def test_lock_wait_is_in_seconds_and_the_environment_sets_its_default(value: str, seconds: float) -> None:
    assert parse().lock_wait == 0
    assert (
        parse(f"--lock-wait={value}").lock_wait
        == parse("--lock-wait", value).lock_wait
        == pytest.approx(seconds)
    )
    assert parse_args(["app.elf"], lock_wait=value).lock_wait == pytest.approx(seconds)
    assert parse_args(["--lock-wait=7", "app.elf"], lock_wait=value).lock_wait == 7


@pytest.mark.parametrize("value", ["", "-1", "nan", "inf", "1e9", "soon", "5m"])
def test_an_invalid_lock_wait_is_malformed(value: str) -> None:
    with pytest.raises(UsageError, match=r"(?m)^Malformed argument to --lock-wait$"):
        parse(f"--lock-wait={value}")
    if value:
        with pytest.raises(UsageError, match=r"(?m)^Malformed value of TENDER_LOCK_WAIT$"):
            parse_args(["app.elf"], lock_wait=value)


def test_the_help_names_every_option() -> None:
    """The help of solo5-hvt names all of its options too."""
    from tender.cli import usage

    text = usage.run_help()
    for option in (*OPTIONS, *SHORT):
        assert re.search(rf"^  (-\w, )?{option}\b", text, re.MULTILINE) or f"  {option}, --" in text, option
    solo5 = usage.solo5("solo5-hvt")
    for option in ("--mem", "--no-net-ring", "--net-reattach", "--help", "--version", *NAMED):
        assert re.search(rf"^  (--help, )?{option}\b", solo5, re.MULTILINE), option
