"""The registers of a guest as people see them."""

from tender.debug.registers import GENERAL, Registers

MANY = Registers(rip=0x10030F, rsp=0xFFF0, r15=(1 << 64) - 1, rflags=0x202, xsave=bytes(832))


def test_the_repr_is_one_line_in_hexadecimal_with_the_position_first() -> None:
    said = repr(MANY)

    assert said.startswith("Registers(rip=0x10030f, rsp=0xfff0, rax=0x0, ")
    assert said.endswith("r15=0xffffffffffffffff, rflags=0x202, fs_base=0x0, gs_base=0x0, xsave=<832 bytes>)")
    assert "\n" not in said and "\\x00" not in said and said.count("rsp=") == 1


def test_what_is_printed_has_each_register_on_short_lines_and_no_vectors() -> None:
    said = str(MANY)

    for name in (*GENERAL, "rip", "rflags", "fs_base", "gs_base"):
        assert f"{name} {getattr(MANY, name):016x}" in said
    assert max(map(len, said.split("\n"))) <= 100
    assert "xsave" not in said


def test_the_vector_registers_stay_an_attribute() -> None:
    assert MANY.xsave == bytes(832)
    assert MANY.to_dict()["xsave"] == "\0" * 832
