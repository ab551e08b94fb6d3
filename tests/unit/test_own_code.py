"""Which frames are taken for the user's own code, and whose source is shown."""

from pathlib import Path

import pytest

from tender.debug.own_code import library_of, own_frame, source_of
from tender.debug.report import _above
from tender.debug.symbols import Frame


@pytest.mark.parametrize(
    ("function", "file", "expected"),
    [
        ("guest_exit", "/build/tender/guest_kernel/start.c", "guest library"),
        ("panic", "../guest_kernel/panic.c", "guest library"),
        ("_start", "", "guest library"),
        ("main", "/home/me/my_guest_kernel/main.c", ""),
        ("main", "/home/me/app/main.c", ""),
        ("report", "", ""),
        ("solo5_abort", "", "Solo5"),
        ("platform_exit", "/b/solo5-0.9.0/bindings/hvt/platform.c", "Solo5"),
        ("_start", "bindings/hvt/start.c", "Solo5"),
        ("main", "bindings/main.c", ""),
        ("printf", "/b/ocaml-solo5/nolibc/stubs.c", "Solo5"),
        ("caml_main", "", "OCaml runtime"),
        ("fail", "/b/ocaml-5.2/runtime/fail_nat.c", "OCaml runtime"),
        ("mark", "runtime/major_gc.c", "OCaml runtime"),
        ("Stdlib.List.iter", "list.ml", "OCaml runtime"),
        ("Unikernel.start", "/home/me/app/unikernel.ml", ""),
        ("Lwt.bind", "/home/me/.opam/5.2/.opam-switch/build/lwt/src/lwt.ml", "package"),
        ("Tcpip.input", "/home/me/app/duniverse/tcpip/src/flow.ml", "package"),
        ("core::panicking::panic", "", "Rust library"),
        ("unwrap", "/rustc/90b35a623/library/core/src/option.rs", "Rust library"),
        ("app::main", "/home/me/app/src/main.rs", ""),
        ("corelib::main", "src/main.rs", ""),
        ("memcpy", "/usr/include/string.h", "system"),
    ],
)
def test_a_frame_is_a_librarys_by_its_file_or_its_name(function: str, file: str, expected: str) -> None:
    assert library_of(Frame(pc=1, function=function, file=file)) == expected


def test_the_own_frame_is_the_innermost_with_a_name_that_no_library_has() -> None:
    library, own = Frame(pc=1, function="caml_main"), Frame(pc=2, function="work")
    nameless = Frame(pc=3)

    assert own_frame([library, nameless, own, own]) == 2
    assert own_frame([own]) == 0
    assert own_frame([library, nameless]) is None
    assert own_frame([]) is None


def test_the_source_is_that_of_own_code_and_else_of_the_innermost_frame(tmp_path: Path) -> None:
    (tmp_path / "guest_kernel").mkdir()
    library, own, absent = tmp_path / "guest_kernel/start.c", tmp_path / "main.c", tmp_path / "absent.c"
    library.write_text("library\n")
    own.write_text("own\n")
    frames = [Frame(pc=1, function="f", file=str(it), line=1) for it in (library, absent, own)]

    assert source_of(frames) == {"frame": 2, "file": str(own), "line": 1, "lines": [[1, "own"], [2, ""]]}
    found = source_of(frames[:2])
    assert found is not None
    assert (found["frame"], found["file"]) == (0, str(library))
    assert source_of(frames[1:2]) is None
    assert source_of([]) is None


def test_a_deep_stack_without_sources_opens_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def read(path: str) -> str:
        tried.append(path)
        return ""

    monkeypatch.setattr("tender.debug.own_code._read", read)

    assert (
        source_of([Frame(pc=n, function="f", file=str(tmp_path / str(n)), line=1) for n in range(500)])
        is None
    )
    assert len(tried) <= 9


def test_a_handlers_stack_ends_where_the_interrupted_code_begins() -> None:
    handler, one, two = (Frame(pc=n, cfa=n) for n in (1, 2, 3))

    assert _above([handler, one, two], [one, two]) == [handler]
    assert _above([handler, two], [one, two]) == [handler]
    assert _above([handler], [one, two]) == [handler]
