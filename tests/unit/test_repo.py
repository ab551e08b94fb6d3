"""Rules of the tree that are easy to forget: which part imports which, which parts print, and which exit."""

import ast
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tender"

# A lower level may not import a higher one. `assemble` connects backend and devices, which do not import each other.
LEVELS = {
    "values": 0, "errors": 0, "cures": 0, "annotations": 0, "printable": 0, "log": 0,
    "platform_check": 0, "_version": 0, "_native": 0,
    "config": 1, "native": 1,
    "result": 2, "image": 2, "manifest_json": 2, "manifest": 3, "outcome": 3,
    "devices": 4, "backend": 4,
    "assemble": 5, "debug": 5, "vm": 5, "pool": 6, "watch": 6,
    "bench": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip
UNRELATED = [{"devices", "backend"}]
INSIDE_UP = {
    "tender/backend/trial.py"
}  # the doctor's trial VM: it uses the whole library, and only the CLI imports it


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tender":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("tender.")}
    return found


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    if here == "__init__" or str(path.relative_to(ROOT)) in INSIDE_UP:
        return
    for other in imported(path) & set(LEVELS):
        assert other == here or LEVELS[other] <= LEVELS[here], f"{here} imports {other}"
        for parts in UNRELATED:
            assert not {here, other} <= parts or here == other, f"{here} imports {other}"


ENDS_A_CHILD = {"confined.py", "guard.py", "start.py"}
"""These fork, and end the child so that nothing of the caller's runs twice."""


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints_reads_the_environment_or_exits(path: Path) -> None:
    if part(path) in {"cli", "bench", "__main__"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit", "input"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = (node.value.id, node.attr)
            if called == ("os", "_exit") and path.name in ENDS_A_CHILD:
                continue
            assert called not in {("sys", "exit"), ("os", "_exit"), ("sys", "stdout")}, f"line {node.lineno}"


@pytest.mark.parametrize("name", ["vm.py", "pool.py", "assemble.py", "backend/machine.py"])
def test_a_vm_is_made_by_its_constructor(name: str) -> None:
    """No object takes the attributes of another one, and every object is made by its constructor."""
    names = {
        it.attr for it in ast.walk(ast.parse((PACKAGE / name).read_text())) if isinstance(it, ast.Attribute)
    }
    assert not names & {"__dict__", "__new__", "__setstate__", "__class__"}


def c_code(path: Path) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(\\.|[^\"\\])*\"", " ", path.read_text(), flags=re.DOTALL)


CORE = sorted((ROOT / "bindings" / "core").glob("*.[ch]"))


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_neither_prints_nor_exits_nor_allocates(path: Path) -> None:
    calls = set(
        re.findall(
            r"\b(f?printf|puts|exit|_exit|abort|malloc|calloc|realloc|system|perror)\s*\(", c_code(path)
        )
    )
    assert not calls


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s+[<"]([^>"]+)', path.read_text())


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_uses_neither_kvm_nor_python_nor_threads(path: Path) -> None:
    assert not [n for n in includes(path) if "kvm" in n or "Python" in n or n == "native.h"]
    assert not {"pthread.h", "semaphore.h", "threads.h"} & set(includes(path))
    assert not re.search(r"\b(pthread|sem)_\w+|\b_?[Tt]hread_local\b", c_code(path))


A_KIND = re.compile(r"(?:\b|_)(?:net|block|disk|tap|tcp|ring)s?(?=\b|_)", re.IGNORECASE)
MAY_NAME_A_KIND = {
    "vm_types.h",  # the counters and the ways to serve a ring, which Python reads
    "entered.h",  # the sources of values
}


@pytest.mark.parametrize("path", [p for p in CORE if p.name not in MAY_NAME_A_KIND], ids=lambda p: p.name)
def test_the_core_names_no_kind_of_device(path: Path) -> None:
    """The core knows a kind only as a row of abi/devices.def, and as a part of struct vm that only the kind
    itself reads."""
    assert [line for line in c_code(path).split("\n") if A_KIND.search(line)] == []


BACKS = {"net_frame.h", "block.h", "console.h"}
"""The headers of devices that a guest ABI's front may include."""


def is_front(path: Path) -> bool:
    return path.parent.parent.name == "guest_abi" and path.name.startswith(("hc_", "hvt_answer"))


def test_guest_abis_and_devices_know_only_each_others_interfaces() -> None:
    """A front reads the structures of the guest's ABI and calls a device; it knows neither the device's
    state nor its descriptor. A device knows no structure of an ABI. The network ring is both: it belongs to
    Solo5, and to the network that it serves."""
    of_the_abi = re.compile(
        r"\bhypercall_args\b|\bstruct (?:hvt|tender)_(?!trap_cookie)\w+|\benum verdict hc_\w+"
    )
    of_a_device = re.compile(
        r"\b(?:net|disk)_of\(|\bnet_vm\(|->fd\b|\b(?:read|write|send|recv|ppoll|pread|pwrite)v?\("
    )
    fronts = [p for p in OURS if is_front(p)]
    assert {p.name for p in fronts} >= {"hc_solo5.c", "hc_net_batch.c", "hc_block_batch.c"}
    for path in fronts:
        assert not of_a_device.search(c_code(path)), path.name
    for path in OURS:
        if c_part(path) == "devices" and "ring" not in path.name:
            assert not of_the_abi.search(c_code(path)), path.name
        if c_part(path) == "guest_abi" and not is_front(path):
            assert not [n for n in includes(path) if n in HEADERS and c_part(HEADERS[n]) == "devices"], (
                path.name
            )


def test_only_a_kind_of_device_reads_its_own_state() -> None:
    of_kinds = {p.name for kind in ("net", "block") for p in (ROOT / "bindings/devices" / kind).glob("*.h")}
    assert {"net.h", "disk.h", "ring.h"} <= of_kinds
    for path in OURS:
        if c_part(path) != "devices":
            assert not (of_kinds - (BACKS if is_front(path) else set())) & set(includes(path)), path.name
            assert not re.search(r"\bMFT_(NET|BLOCK)_BASIC\b", c_code(path)) or c_part(path) == "abi", (
                path.name
            )
        if path.name not in {"net.h", "disk.h"}:
            assert not re.search(r"\bdevice->own\b|->kinds\b", c_code(path)), path.name


C_LEVELS = {
    "abi": 0,
    "core": 1,
    "host": 1,
    "arch": 2,
    "devices": 3,
    "guest_abi": 4,
    "machine": 5,
    "vm": 6,
    "python": 7,
    "command": 7,
    "program": 7,  # tender-sandbox is a separate program, and reports its end as the command does
}
C_UNRELATED = {
    frozenset({"devices", "machine"}),
    frozenset({"machine/kvm", "machine/sandbox"}),
}
"""Each of them includes what is below it, and neither includes the other."""


def c_part(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if "program" in parts:
        return "program"
    return parts[0] if parts[0] == "abi" else parts[1]


def c_backend(path: Path) -> str:
    """Returns the part, and for a machine its folder too: machine/kvm."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[1:3]) if c_part(path) == "machine" and len(parts) > 3 else c_part(path)


OURS = sorted(p for place in ("abi", "bindings") for p in (ROOT / place).rglob("*.[chS]"))
HEADERS = {p.name: p for p in OURS if p.suffix == ".h"}


def test_every_header_has_a_unique_name() -> None:
    assert len(HEADERS) == len([p for p in OURS if p.suffix == ".h"])


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_point_down(path: Path) -> None:
    here = c_part(path)
    for name in includes(path):
        header = HEADERS.get(name.rsplit("/", 1)[-1])
        if header is None or name.startswith(("linux/", "sys/", "asm/")):
            continue
        there = c_part(header)
        assert there == here or C_LEVELS[there] < C_LEVELS[here], f"{here} includes {name}"
        for one, other in ((here, there), (c_backend(path), c_backend(header))):
            assert frozenset({one, other}) not in C_UNRELATED, f"{one} includes {name}"


def test_code_that_reads_any_image_includes_no_guest_abi() -> None:
    here = ROOT / "bindings" / "guest_abi"
    of_an_abi = {p.name for folder in here.iterdir() if folder.is_dir() for p in folder.glob("*.h")}
    assert of_an_abi
    assert [p.name for p in here.glob("*.[ch]") if set(includes(p)) & of_an_abi] == []


FREESTANDING = {
    "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdalign.h", "stdnoreturn.h", "limits.h",
}  # fmt: skip


# What is linked into the sandboxed program may include only these headers of the host's side.
SHARED_WITH_THE_PROGRAM = {"fds.h", "config.h", "layout.h"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bindings/machine/sandbox").rglob("*.[chS]")), ids=lambda p: p.name
)
def test_the_two_sides_of_the_sandbox_share_only_plain_numbers(path: Path) -> None:
    of_program = path.parent.name == "program"
    for name in {n.rsplit("/", 1)[-1] for n in includes(path)} - SHARED_WITH_THE_PROGRAM:
        sides = {p.parent.name for p in OURS if p.name == name} & {"program", "sandbox"}
        assert sides <= {"program" if of_program else "sandbox"}, name


@pytest.mark.parametrize("part", ["command", "vm", "python"])
def test_machines_are_used_only_through_their_interface(part: str) -> None:
    """Code that runs a guest must not depend on the kind of machine: it includes no header of one machine
    and has no flag for it. The exceptions are in the library, which makes KVM's descriptors itself and has
    the call sites of templates patched."""
    excused = {"kvm_ops.h", "patch.h"} if part == "python" else set()
    for path in (p for p in OURS if c_part(p) == part):
        for name in set(includes(path)) & set(HEADERS) - excused:
            assert c_backend(HEADERS[name]) not in {"machine/kvm", "machine/sandbox"}, f"{path.name}: {name}"
        assert not re.search(r"\b(is|behind)_(kvm|sandbox)\b", path.read_text()), path.name


def test_code_that_opens_devices_names_no_kind_of_device() -> None:
    """The functions that read options, open and attach devices are found by the rows of abi/devices.def and of
    the table of options."""
    kinds = re.findall(r"^DEVICE\((MFT_\w+), (\w+),", (ROOT / "abi" / "devices.def").read_text(), re.M)
    assert kinds
    named = "|".join(rf"{number}|{name}_\w+\(|DEVICE_TYPE_{name}" for number, name in kinds)
    files = ("command/devices.c", "command/request.c", "command/request.h", "python/native.c")
    for path in (*(ROOT / "bindings" / name for name in files), *(ROOT / "bindings/devices").glob("*.c")):
        assert re.findall(rf"\b(?:{named})", c_code(path)) == [], path.name


def test_only_the_kvm_backend_includes_the_kernels_kvm_header() -> None:
    users = [p for p in (ROOT / "bindings").rglob("*.[ch]") if "#include <linux/kvm.h>" in p.read_text()]
    assert {p.parent.name for p in users} == {"kvm"}


# ---- every value that enters the guest passes entered() (core/entered.h); tests/native/test_entered.c records them

MAY_ASK_FOR_WRITABLE = {
    "hypercalls.def",  # a row's access, which serve_row() of hypercall.c uses and writes back
    "guest_memory.h", "guest_memory.c", "entered.h",
    "guest_access.c",  # an emulated write
    "block_transfer.c",  # one address for both directions
}  # fmt: skip
MAY_KNOW_THE_ADDRESS = {
    "guest_memory.h", "guest_memory.c", "guest_map.c", "guest_reset.c", "entered.h",
    "image_memory.c", "kvm_ops.c", "run_kvm.c", "sandbox_ops.c",
    "native.c",  # the beginning of the ring's part
    "main.c",  # the sandbox's main.c, which sets the address
}  # fmt: skip
REPORTED_BY = {
    "restore": "guest_memory_reset", "disk_map_copy": "move", "transfer_rest": "move",
    "map_and_load": "image_memory_protect", "make_template": "map_guest",
    "fill_gate_slot": "map_guest", "fill_gate_page": "map_guest",
}  # fmt: skip
"""Functions that fill guest memory, and the function that reports it for them."""
FILL_NO_GUEST_MEMORY = {
    "guest_read", "guest_fetch", "read_memory", "give_console_piece", "end",  # copy from the guest
    "disk_map_note", "disk_map_flushed",  # record the state of a disk's pages
    "drop_frames", "ring_kicks_come_fast", "get_cpu_state", "set_run_mask", "take_config",
    "tell_debugger",  # a word of vm_shared
    # these copy from the guest into the ring of its last calls
    "has_trace_ring", "copy_stack", "copy_text", "trace_begin", "trace_end",
}  # fmt: skip
FILLS = re.compile(
    r"\b(?:p?readv?|preadv2|recv|recvfrom|recvmsg|guarded_copy|tcp_cut_next|process_vm_writev|start_state_write_\w+)\("
    r"|\bmem(?:cpy|move|set)\((?!&)|\b__atomic_store_n\(|\bring->shared->\w+(?:\[[^]]*\])? = |\bdata\[\w+\] = "
)
REPORTS = re.compile(r"\b(?:entered|guest_put|report_entered|report_read)\(")


def c_functions(path: Path) -> dict[str, str]:
    """Returns the functions of a file in clang-format's layout: a body begins and ends with a brace at the
    margin."""
    code = re.sub(r"__attribute__\(\(.*?\)\)", "", c_code(path))
    found = re.findall(r"^(\w[^;{}#]*?)\n\{\n(.*?)^\}", code, re.M | re.S)
    return {re.findall(r"(\w+)\(", head)[0]: body for head, body in found if "(" in head}


def test_only_the_core_requests_writable_memory_or_knows_its_address() -> None:
    for path in [*OURS, ROOT / "abi" / "hypercalls.def"]:
        code = c_code(path)
        if path.name not in MAY_ASK_FOR_WRITABLE:
            assert "GUEST_WRITABLE" not in code.replace("if (access == GUEST_WRITABLE)", ""), path.name
        if path.name not in MAY_KNOW_THE_ADDRESS:
            assert not re.search(r"\bmemory(\.|->)hva\b", code), path.name
        if c_part(path) == "devices" and path.name != "block_transfer.c":
            assert "guest_memory_at(" not in code, (
                f"{path.name}: guest_bytes_at(), or guest_buffer_at() to fill it"
            )


def test_code_that_fills_guest_memory_reports_it() -> None:
    reach = re.compile(r"\b(guest_\w+_at\(|memory(\.|->)hva\b|(ring->|ring\.)shared\b|struct disk_map\b)")
    reporting, silent = set(), set()
    for path in (p for p in OURS if p.suffix == ".c" and (reach.search(c_code(p)) or p.name == "map.c")):
        for name, body in c_functions(path).items():
            if REPORTS.search(body):
                reporting.add(name)
            elif FILLS.search(body):
                silent.add(name)
    assert silent == FILL_NO_GUEST_MEMORY | REPORTED_BY.keys()
    assert set(REPORTED_BY.values()) <= reporting


def is_defined(name: str, path: Path) -> bool:
    """Returns whether the file defines this function, or in assembly this label."""
    if path.suffix == ".py":
        return re.search(rf"^ *def {name}\(", path.read_text(), re.M) is not None
    if path.suffix == ".S":
        return re.search(rf"^{name}:", path.read_text(), re.M) is not None
    return re.search(rf"^(?=\w)[^\n;]*\b{name}\((?![^{{}}]*;)", c_code(path), re.M) is not None


def test_a_function_that_is_only_declared_or_called_is_not_defined(tmp_path: Path) -> None:
    code = tmp_path / "one.c"
    code.write_text("int one(void);\nint two(int a,\n        int b)\n{\n    return one();\n}\n")
    assert [is_defined(name, code) for name in ("one", "two", "three")] == [False, True, False]


def test_functions_named_on_the_architecture_page_are_in_the_named_files() -> None:
    """The section that a new engineer reads first names functions as `NAME()` in [FILE](PATH)."""
    page = ROOT / "docs" / "architecture.md"
    text = " ".join(page.read_text().split("## Where to look")[1].split("\n## ")[0].split())
    named = [
        (name, page.parent / target)
        for names, target in re.findall(
            r"((?:`\w+(?:\(\))?`(?: and (?:then )?)?)+) in \[[^]]+\]\(([^)#]+)", text
        )
        for name in re.findall(r"`(\w+)(?:\(\))?`", names)
    ]
    assert [f"{name}() in {path.name}" for name, path in named if not is_defined(name, path)] == []
    everywhere = set(re.findall(r"`(\w+)\(\)`", text))
    assert everywhere - {name for name, _ in named} == set()
    assert len(everywhere) > 30


def test_the_architecture_page_lists_files_and_folders_that_exist() -> None:
    """A file that its tree names exists. Each folder of bindings/ and each module at the top of tender/ is in the tree."""
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The parts")[1].split("```")[1]
    tops = ("abi", "bindings", "guest_kernel", "tender", "bench", "tools", "tests")
    there = {p.name for p in ROOT.glob("*.*")} | {p.name for top in tops for p in (ROOT / top).rglob("*.*")}
    named = set(re.findall(r"\b\w+\.(?:c|h|S|py|def|txt|json|yml)\b", tree))
    assert len(named) > 60
    assert named - there - {"manifest.json"} == set()
    folders = {p.name for p in (ROOT / "bindings").rglob("*") if p.is_dir() and p.name != "__pycache__"}
    assert {name for name in folders if f"{name}/" not in tree} == set()
    modules = {p.name for p in PACKAGE.glob("*.py") if not p.name.startswith("_")}
    assert {name for name in modules if name not in tree} == set()


def test_the_tools_find_the_built_command_without_path() -> None:
    """This is the documented use: right after `make run`, in a shell whose PATH does not have .venv/bin."""
    if not (ROOT / ".venv" / "bin" / "tender").exists():
        pytest.skip("built into another environment")
    done = subprocess.run(
        [ROOT / "tools" / "with_net", "--", "tender", "--version"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def c_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.c", "*.h"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split() or [str(path) for kind in ("*.c", "*.h") for path in ROOT.rglob(kind)]
    paths = [ROOT / name for name in names]
    return [
        path for path in paths if path.exists() and path.relative_to(ROOT).parts[0] not in ("build", ".venv")
    ]


def run_together(lines: list[str]) -> list[str]:
    """Returns lines of a comment's list or picture that seem to continue at the margin, and lines with
    columns at the margin."""
    margin, indented = re.compile(r" \* \S"), re.compile(r" \*   +\S")
    found = [
        one for one, next_ in pairwise(lines) if indented.match(one) and len(one) > 80 and margin.match(next_)
    ]
    return found + [line for line in lines if margin.match(line) and re.search(r"[^-\s|] {5,}\S", line)]


def test_a_list_that_was_joined_to_its_text_is_found() -> None:
    """clang-format made these lines of two lists when it still reformatted comments."""
    assert run_together(
        [
            " *     refused   a write and a read of handles that are no network, unknown operations, a frame",
            ' * bytes, then one frame of 60 bytes is sent: "refused: ret 2" echo      sends back what comes',
        ]
    ) == [
        " *     refused   a write and a read of handles that are no network, unknown operations, a frame",
        ' * bytes, then one frame of 60 bytes is sent: "refused: ret 2" echo      sends back what comes',
    ]


def test_c_comments_fit_and_their_lists_and_pictures_are_intact() -> None:
    """clang-format does not change comments (ReflowComments), so this test checks their width."""
    files = c_files()
    assert len(files) > 100
    assert [
        f"{path.relative_to(ROOT)}: {line}"
        for path in files
        for text in [path.read_text()]
        for line in [
            *(
                line
                for comment in re.findall(r"/\*.*?\*/", text, re.S)
                for line in run_together(comment.split("\n"))
            ),
            *(line for line in text.split("\n") if len(line) > 110),
        ]
    ] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_test_has_a_shorter_time_limit_than_the_default(path: Path) -> None:
    """A busy machine takes ten times as long. `timeout(0)` is for tests that are started by hand and run
    for hours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.timeout":
            assert [ast.unparse(word) for word in node.args] == ["0"], f"line {node.lineno}"
