"""The description of a VM: every value is checked when it is made, and an error says what is wrong."""

import pickle

import pytest

from tender import BlockFd, BlockFile, ConfigError, NetFd, Tap, VmConfig
from tender.config import parse_mac, parse_mem, round_mem

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "mib"),
    [("64", 64), (64, 64), ("64M", 64), ("64m", 64), ("64MiB", 64), ("64MB", 64), ("1G", 1024), ("2048K", 2)],
)
def test_memory_is_mebibytes_or_has_a_unit(text: str | int, mib: int) -> None:
    assert parse_mem(text) == mib * MIB


def test_a_net_ring_is_one_of_four_words() -> None:
    assert VmConfig().net_ring == "auto"
    assert VmConfig(net_ring="inline") != VmConfig()
    with pytest.raises(ConfigError, match="net_ring: 'yes' is none of auto, on, inline, off"):
        VmConfig(net_ring="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "64T", "1.5G", "64 M B", "M", "٣"])
def test_an_invalid_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an amount of memory"):
        parse_mem(text)


@pytest.mark.parametrize(("asked", "got"), [(1, 2), (2, 2), (3, 2), (5, 4), (512, 512), (4097, 4096)])
def test_memory_is_rounded_down_to_two_mebibytes(asked: int, got: int) -> None:
    assert round_mem(asked * MIB) == got * MIB


def test_more_than_four_gibibytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceeds the max size 4294967296 bytes"):
        round_mem(4098 * MIB)


def test_the_library_refuses_memory_that_would_be_rounded() -> None:
    with pytest.raises(ConfigError, match="not a multiple of 2 MiB"):
        VmConfig(mem=3)


def test_empty_words_of_the_command_line_are_kept() -> None:
    assert VmConfig(args=("a", "", "b")).cmdline == b"a  b"


def test_undecodable_bytes_of_the_command_line_are_kept() -> None:
    assert VmConfig(args=("\udcff",)).cmdline == b"\xff"


@pytest.mark.parametrize("word", ["a\udc01", "\ud800"])
def test_half_a_character_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="half of a character"):
        VmConfig(args=("a", word))


def test_a_command_line_of_8191_characters_fits_and_one_more_does_not() -> None:
    assert len(VmConfig(args=("x" * 8191,)).cmdline) == 8191
    with pytest.raises(ConfigError, match=r"Guest command line too long \(max=8191 characters\)"):
        VmConfig(args=("x" * 8192,))


def test_a_single_string_as_arguments_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="sequence of words"):
        VmConfig(args="hello")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 256, 521, 1000, 65536, -512])
def test_sector_sizes_are_powers_of_two_from_512_to_32768(size: int) -> None:
    with pytest.raises(ConfigError, match="Block size must be a multiple of 2 greater than or equal 512"):
        BlockFile("disk.img", sector_size=size)


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:0g", "x"])
def test_a_bad_mac_is_refused(mac: str) -> None:
    with pytest.raises(ConfigError, match="XX:XX:XX:XX:XX:XX"):
        parse_mac(mac)


def test_values_are_equal_hashable_picklable_and_frozen() -> None:
    config = VmConfig(mem="64M", net={"service0": Tap("tap0")}, block=BlockFile("d", read_only=True))
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(pickle.loads(pickle.dumps(config))) == hash(config)
    assert config != VmConfig(mem="64M")
    with pytest.raises(AttributeError, match="immutable"):
        config.mem_bytes = 1


@pytest.mark.parametrize("device", [NetFd(3), BlockFd(3)])
def test_descriptors_refuse_to_be_pickled(device: NetFd | BlockFd) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(device)
