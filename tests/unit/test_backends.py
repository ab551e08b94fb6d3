"""The choice between the backends, and the sandbox as Python sees it: its errors, its ends and its
templates."""

import errno as errno_numbers
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import find_kvm_likely

import tender.backend
import tender.backend.kvm
import tender.backend.sandbox
from tender.annotations import CAPTURE
from tender.backend import create, trial
from tender.backend.machine import Machine
from tender.backend.sandbox import ISOLATION, PROGRAM, SandboxVm, setup_failed
from tender.config import BACKENDS, LAYERS, VmConfig, standing
from tender.errors import ConfigError, HostError, ImageError, KvmUnavailable
from tender.image import Image
from tender.native import CData, ffi, lib, vm_handle
from tender.outcome import explain
from tender.result import ExitReason
from tender.vm import Vm

ROOT = Path(__file__).resolve().parents[2]
MEM = 4 << 20
REASONS = {value for name, value in vars(ExitReason).items() if name.isupper()}


# ---- the choice


class Backends:
    """Replaces both backends: it records which were made, and raises the errors that a test has set."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.kvm_error: Exception | None = None
        self.sandbox_error: Exception | None = None

    def maker(self, name: str) -> Callable[..., object]:
        def make(vm: object, **values: object) -> object:
            self.made.append(name)
            error = self.kvm_error if name == "kvm" else self.sandbox_error
            if error:
                raise error
            return type("Made", (), {"name": name, "fallback": ""})()

        return make

    def create(self, backend: str) -> tuple[str, str]:
        machine = create(backend, None, image=None, mem_bytes=MEM, manifest=None, cmdline=b"")  # type: ignore[arg-type]
        return machine.name, machine.fallback


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Backends:
    made = Backends()
    find_kvm_likely(monkeypatch)
    monkeypatch.setattr(tender.backend, "_CLASSES", {name: made.maker(name) for name in ("kvm", "sandbox")})
    return made


MISSING = KvmUnavailable("Could not open: /dev/kvm: No such file or directory", errno=2, code="kvm-missing")
DENIED = KvmUnavailable("Could not open: /dev/kvm: Permission denied", errno=13, code="kvm-denied")
IOCTL = HostError("KVM: ioctl (CREATE_VM) failed: Device or resource busy", errno=16, code="kvm-ioctl")
OLD = KvmUnavailable("KVM: API version is 11, tender requires version 12")
MEMORY = HostError("Error allocating guest memory: Cannot allocate memory", errno=12, code="memory")
UNSTABLE = HostError("KVM: host TSC is unstable, cannot continue", errno=5, code="tsc-unstable")
IMAGE = ImageError("the image is closed", file="app.elf", code="image-closed")


def test_auto_uses_kvm_where_it_is_available(backends: Backends) -> None:
    assert backends.create("auto") == ("kvm", "")
    assert backends.made == ["kvm"]


@pytest.mark.parametrize("error", [MISSING, DENIED, IOCTL, OLD], ids=lambda e: str(e.message[:40]))
def test_auto_uses_the_sandbox_without_kvm_and_gives_the_reason(backends: Backends, error: HostError) -> None:
    backends.kvm_error = error
    assert backends.create("auto") == ("sandbox", error.message)
    assert backends.made == ["kvm", "sandbox"]


@pytest.mark.parametrize("error", [MEMORY, UNSTABLE, IMAGE, KeyError("ours")], ids=lambda e: str(e)[:40])
def test_errors_that_do_not_mean_a_missing_kvm_are_not_hidden_by_a_fallback(
    backends: Backends, error: Exception
) -> None:
    backends.kvm_error = error
    with pytest.raises(type(error)) as raised:
        backends.create("auto")
    assert raised.value is error
    assert backends.made == ["kvm"]


@pytest.mark.parametrize("error", [MISSING, DENIED, IOCTL, OLD, MEMORY, IMAGE], ids=lambda e: str(e)[:40])
def test_requesting_kvm_gives_kvm_or_its_error(backends: Backends, error: Exception) -> None:
    backends.kvm_error = error
    with pytest.raises(type(error)):
        backends.create("kvm")
    assert backends.made == ["kvm"]


def test_requesting_the_sandbox_does_not_touch_kvm(backends: Backends) -> None:
    assert backends.create("sandbox") == ("sandbox", "")
    assert backends.made == ["sandbox"]


def test_an_unfit_kvm_is_not_even_tried(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """test_lifecycle.c tests how C judges this host's KVM."""
    choose = tender.backend._choose

    def unfit(choice: CData, backend: str, refused: CData) -> str:
        name = choose(choice, backend, refused)
        if (backend, name) != ("auto", "kvm"):
            return name
        refused.code, refused.text = b"kvm", b"odd"
        return choose(choice, backend, refused)

    monkeypatch.setattr(tender.backend, "_choose", unfit)
    assert backends.create("auto") == ("sandbox", "odd")
    assert backends.made == ["sandbox"]
    assert backends.create("kvm") == ("kvm", ""), "a backend that is requested by name is tried"


LONG = KvmUnavailable(f"Could not open: {'ä' * 300}", code="kvm-missing")  # C keeps 511 bytes of it


@pytest.mark.parametrize("error", [MISSING, LONG], ids=["short", "long"])
def test_if_both_backends_fail_the_error_names_both(backends: Backends, error: HostError) -> None:
    backends.kvm_error = error
    backends.sandbox_error = HostError(
        "sandbox: the seccomp filter: Invalid argument", errno=22, hint="a kernel with it"
    )
    with pytest.raises(HostError) as raised:
        backends.create("auto")
    assert raised.value.message == "sandbox: the seccomp filter: Invalid argument"
    earlier = error.message.encode()[:511].decode("utf-8", "replace")
    assert raised.value.hint == f"a kernel with it\nand no KVM: {earlier}"


@pytest.mark.parametrize("backend", ["auto", "sandbox"])
def test_an_error_with_a_path_of_any_bytes_is_raised_unchanged(backends: Backends, backend: str) -> None:
    backends.kvm_error = MISSING
    backends.sandbox_error = HostError(
        "sandbox: /\udcff/tender-sandbox: No such file or directory", errno=2, code="sandbox"
    )
    with pytest.raises(HostError) as raised:
        backends.create(backend)
    assert raised.value is backends.sandbox_error


@pytest.mark.parametrize("name", ["", "KVM", "qemu", "auto "])
def test_an_unknown_backend_is_refused_by_name(backends: Backends, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        backends.create(name)
    assert raised.value.message == f"backend: {name!r} is none of auto, kvm, sandbox"
    assert backends.made == []


def test_the_machines_in_c_have_the_order_of_the_backends() -> None:
    names = [lib.tn_machine_name(i) for i in range(len(BACKENDS))]
    assert [ffi.string(name).decode() for name in names[:-1]] == list(BACKENDS[1:])
    assert names[-1] == ffi.NULL


def test_a_machine_that_this_build_does_not_have_is_refused_by_name(image: Image) -> None:
    handle = vm_handle()
    assert lib.tn_vm_make(handle) == 0
    manifest = ffi.addressof(image.elf.c, "manifest")
    with pytest.raises(HostError, match="no machine of this build: none such"):
        Machine(handle, name="none such", image=image, mem_bytes=MEM, manifest=manifest, cmdline=b"")  # type: ignore[arg-type]


# ---- starting the program


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.from_bytes(trial.elf(), "trial") as opened:
        yield opened


def sandbox(image: Image, program: Path | str) -> CData:
    handle = vm_handle()
    assert lib.tn_vm_make(handle) == 0
    manifest = ffi.addressof(image.elf.c, "manifest")
    SandboxVm(handle, image=image, mem_bytes=MEM, manifest=manifest, cmdline=b"", program=str(program))
    return handle


def static_program(place: Path, code: bytes) -> Path:
    """Returns a Linux program of these instructions that needs nothing from a file system."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 120 + len(code), 120 + len(code), 4096)
    path = place / "program"
    path.write_bytes(head + code)
    path.chmod(0o755)
    return path


def unusable_programs(place: Path) -> dict[str, tuple[Path, int]]:
    plain, text, script = place / "plain", place / "text", place / "script"
    plain.write_bytes(Path(tender.backend.sandbox.PROGRAM).read_bytes())
    plain.chmod(0o644)
    for path, content in ((text, "hello"), (script, "#!/nonexistent/sh\n")):
        path.write_text(content)
        path.chmod(0o755)
    return {"missing": (place / "absent", 2), "plain": (plain, 13), "text": (text, 8), "script": (script, 2),
            "directory": (place, 13)}  # fmt: skip


@pytest.mark.parametrize("which", ["missing", "plain", "text", "script", "directory"])
def test_a_program_that_cannot_start_is_named_and_leaves_nothing(
    which: str, image: Image, tmp_path: Path
) -> None:
    program, errno = unusable_programs(tmp_path)[which]
    image.template(MEM, patched=True)
    handle = vm_handle()
    before = set(os.listdir("/proc/self/fd"))
    assert lib.tn_vm_make(handle) == 0
    with pytest.raises(HostError) as raised:
        SandboxVm(
            handle,
            image=image,
            mem_bytes=MEM,
            manifest=ffi.addressof(image.elf.c, "manifest"),
            cmdline=b"",
            program=str(program),
        )
    lib.tn_vm_close(handle)
    assert set(os.listdir("/proc/self/fd")) == before
    assert (raised.value.errno, raised.value.code) == (errno, "sandbox")
    assert raised.value.message == f"sandbox: {program} cannot be started: {os.strerror(errno)}"
    assert raised.value.hint.startswith("it belongs to the package: install tender again")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # mov $3,%edi; mov $231,%eax; syscall
        (bytes.fromhex("bf03000000b8e70000000f05"), "the process exited with status 3 instead of reporting an end"),
        (bytes.fromhex("0f0b"), "the process died of SIGILL in its hypercall handlers"),
    ],
)  # fmt: skip
def test_a_program_that_ends_before_it_runs_gives_an_end_with_a_reason(
    code: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = str(static_program(tmp_path, code))
    original = SandboxVm
    monkeypatch.setitem(
        tender.backend._CLASSES, "sandbox", lambda vm, **values: original(vm, **values, program=program)
    )
    with Image.from_bytes(trial.elf()) as image, Vm(image, VmConfig(mem=4), backend="sandbox") as vm:
        result = vm.run(timeout=120)
    assert (result.reason, result.status, result.message) == ("sandbox-died", 1, f"sandbox: {message}")
    assert (result.guest_status, result.fault, result.backend) == (None, None, "sandbox")


def test_every_isolation_layer_in_force_has_a_name(image: Image) -> None:
    handle, layers, number = sandbox(image, PROGRAM), ffi.new("uint32_t *"), ffi.new("int *")
    assert lib.tn_isolation(handle, layers) == lib.tn_pid(handle, number) == 0
    assert standing(layers[0]) and set(standing(layers[0])) <= set(ISOLATION)
    pid = int(number[0])
    assert Path(f"/proc/{pid}").exists()
    assert lib.tn_vm_close(handle) == lib.tn_vm_close(handle) == 0
    assert not Path(f"/proc/{pid}").exists()


STEPS = {
    1: "mapping guest memory", 2: "signals", 3: "limits", 4: "dropping rights", 5: "the seccomp filter",
    6: "an inherited seccomp filter ended the process before the guest's first instruction",
}  # fmt: skip


@pytest.mark.parametrize("step", [0, *STEPS, 7, 99])
def test_a_failed_step_of_the_setup_is_named(step: int) -> None:
    error = setup_failed(step, 1)
    what = STEPS.get(step, f"step {step}")
    assert (error.message, error.errno) == (f"sandbox: {what}: Operation not permitted", 1)
    assert bool(error.hint) == (step in (1, 5, 6))


@pytest.mark.parametrize(
    ("step", "number", "words"),
    [
        (1, errno_numbers.EPERM, "vm.mmap_min_addr"),
        (1, errno_numbers.ENOMEM, "ulimit -v"),
        (1, errno_numbers.EACCES, "MemoryDenyWriteExecute"),
        (1, errno_numbers.EEXIST, "Linux 5.9"),
        (1, errno_numbers.EAGAIN, "ulimit -l"),
        (1, errno_numbers.EIO, ""),
        (2, errno_numbers.ENOMEM, "vm.overcommit_memory"),
        (4, errno_numbers.EPERM, ""),
        (5, errno_numbers.EINVAL, "CONFIG_SECCOMP_FILTER"),
        (5, errno_numbers.ENOMEM, "ulimit -v"),
        (6, errno_numbers.ENOSYS, "SystemCallFilter="),
        (0, errno_numbers.EAGAIN, "ulimit -u"),
        (0, errno_numbers.EMFILE, "ulimit -n"),
        (0, errno_numbers.EACCES, "noexec"),
        (0xFFFFFFFF, errno_numbers.ENOMEM, "vm.overcommit_memory"),
        (0xFFFFFFFF, errno_numbers.EACCES, ""),
    ],
)
def test_the_hint_of_a_failed_step_fits_its_error(step: int, number: int, words: str) -> None:
    hint = setup_failed(step, number).hint
    assert words in hint and bool(hint) == bool(words)
    assert ("mmap_min_addr" in hint) == (words == "vm.mmap_min_addr")


def enum_of(header: str, name: str) -> dict[str, int]:
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "bindings" / header).read_text(), flags=re.DOTALL)
    found = re.search(rf"enum {name} \{{(.*?)\}}", text, re.DOTALL)
    assert found
    return {key: eval(value) for key, value in re.findall(r"(\w+) = ([0-9 <]+)", found[1])}


def test_the_names_in_python_have_the_order_of_the_headers() -> None:
    layers = enum_of("machine/layers.h", "isolation_layer")
    words = [name.split("-")[0].upper() for name in LAYERS]
    assert [key.split("_")[1] for key in layers] == words
    assert [ffi.string(lib.tn_isolation_name(i)).decode() for i in range(len(LAYERS))] == list(LAYERS)
    assert lib.tn_isolation_name(len(LAYERS)) == ffi.NULL
    assert list(layers.values()) == [1 << i for i in range(len(LAYERS))]
    assert list(enum_of("machine/sandbox/program/program.h", "sandbox_step").values()) == list(STEPS)[:-1]
    config = (ROOT / "bindings" / "machine" / "sandbox" / "config.h").read_text()
    assert re.findall(r"#define SANDBOX_STEP_OUTER_FILTER (\d+)", config) == [str(list(STEPS)[-1])]


# ---- the ends


def event(**fields: object) -> CData:
    made = ffi.new("struct vm_event *")
    for name, value in fields.items():
        if isinstance(value, bytes):
            ffi.memmove(getattr(made, name), value, len(value))
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        (
            {"kind": lib.EVENT_UNSUPPORTED_INSTRUCTION, "rip": 0x100010, "instruction": b"\x0f\x01\xc1",
             "instruction_bytes": 3},
            "unsupported-instruction",
            "sandbox: a privileged instruction that is not emulated: rip=0x100010, bytes 0f 01 c1;"
            ' KVM may run it: backend="kvm"',
        ),
        (
            {"kind": lib.EVENT_FORBIDDEN_SYSCALL, "number": 1, "detail": 0xC000003E, "rip": 0x100010},
            "forbidden-syscall",
            "sandbox: the guest asked the host's kernel for system call 1 (write): rip=0x100010",
        ),
        (
            {"kind": lib.EVENT_HANDLER_FAULT, "detail": 11, "rip": 0x7F0000000000},
            "sandbox-fault",
            "sandbox: SIGSEGV at rip=0x7f0000000000 in the hypercall handlers: the guest jumped into them or"
            " overwrote their memory",
        ),
        (
            {"kind": lib.EVENT_HANDLER_FAULT, "detail": 64},
            "sandbox-fault",
            "sandbox: signal 64 at rip=0x0 in the hypercall handlers: the guest jumped into them or overwrote"
            " their memory",
        ),
        (
            {"kind": lib.EVENT_HANDLER_FAULT},
            "sandbox-fault",
            "sandbox: a false report from the hypercall handlers: the guest jumped into them or overwrote their"
            " memory",
        ),
        (
            {"kind": lib.EVENT_PROCESS_DIED, "detail": 31},
            "sandbox-died",
            "sandbox: the process was killed by its seccomp filter: the guest made the hypercall handlers"
            " ask for a forbidden system call",
        ),
        (
            {"kind": lib.EVENT_PROCESS_DIED, "detail": 9},
            "sandbox-died",
            "sandbox: the process was killed from outside (SIGKILL): by another process, or because memory ran out",
        ),
        (
            {"kind": lib.EVENT_PROCESS_DIED, "detail": 11},
            "sandbox-died",
            "sandbox: the process died of SIGSEGV in its hypercall handlers",
        ),
        (
            {"kind": lib.EVENT_PROCESS_DIED, "status": 71},
            "sandbox-died",
            "sandbox: the process exited with status 71 instead of reporting an end",
        ),
        (
            {"kind": lib.EVENT_PROCESS_DIED, "os_error": 10},
            "sandbox-died",
            "sandbox: the process ended, and something else in this program took its exit status",
        ),
    ],
)  # fmt: skip
def test_every_end_of_the_sandbox_has_its_message(
    fields: dict[str, object], reason: str, message: str
) -> None:
    status = 2 if "killed from outside" in message or "took its exit status" in message else 1
    assert explain(event(**fields), "sandbox") == (reason, status, message)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lib.EVENT_TRANSLATION_FAULT, "sandbox: host/guest translation fault: rip=0x2a"),
        (lib.EVENT_UNHANDLED_EXIT, "sandbox: unhandled exit: exit_reason=0x5, rip=0x2a"),
        (lib.EVENT_HOST_ERROR, "sandbox: ppoll failed: Input/output error"),
    ],
)
def test_an_end_that_exists_on_both_backends_names_the_backend(kind: int, message: str) -> None:
    assert explain(event(kind=kind, rip=42, detail=5, os_error=5), "sandbox")[2] == message
    of_kvm = explain(event(kind=kind, rip=42, detail=5, os_error=5), "kvm")[2]
    assert of_kvm == message.replace("sandbox: ", "KVM: ").replace("ppoll", "ioctl (RUN)")


@pytest.mark.parametrize(
    ("number", "arch", "words"),
    [
        (0, 0xC000003E, "system call 0 (read)"),
        (231, 0xC000003E, "system call 231 (exit_group)"),
        (4, 0x40000003, "system call 4 (write, by the 32-bit entry)"),
        (11, 0x40000003, "system call 11 (execve, by the 32-bit entry)"),
        (0xFFFFFFFF, 0xC000003E, "system call -1 (no such call)"),
        (0x80000000, 0x40000003, "system call -2147483648 (no such call, by the 32-bit entry)"),
        (0x7FFFFFFF, 0, "system call 2147483647 (no such call)"),
        (0x40000001, 0xC000003E, "system call 1073741825 (no such call)"),
    ],
)
def test_a_system_call_is_named_by_the_table_of_its_entry(number: int, arch: int, words: str) -> None:
    of_event = event(kind=lib.EVENT_FORBIDDEN_SYSCALL, number=number, detail=arch)
    message = f"sandbox: the guest asked the host's kernel for {words}: rip=0x0"
    assert explain(of_event, "sandbox") == ("forbidden-syscall", 1, message)


U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
S32 = st.integers(-(2**31), 2**31 - 1)
# The events that watch.c accepts: no interruption, and none that only KVM has.
REPORTED = [
    kind
    for kind in range(lib.EVENT_HALT, lib.EVENT_SETUP_FAILED)
    if kind
    not in (lib.EVENT_INTERRUPTED, lib.EVENT_CONSOLE, lib.EVENT_ENTRY_FAILURE, lib.EVENT_INTERNAL_ERROR)
]


@given(st.sampled_from(REPORTED), U32, U32, S32, S32, U64, U64, U64, U64, st.binary(max_size=16), U32)
def test_any_report_of_a_sandbox_becomes_one_line_and_a_known_reason(
    kind: int, number: int, port: int, status: int, os_error: int, detail: int, rip: int, gpa: int, length: int,
    code: bytes, valid: int,
) -> None:  # fmt: skip
    if kind == lib.EVENT_BAD_ACCESS:
        number = number % 8 + 1
    made = event(
        kind=kind, number=number, port=port, status=status, os_error=os_error, detail=detail, rip=rip, gpa=gpa,
        len=length, instruction=code, instruction_bytes=len(code), registers_valid=valid, cookie_valid=valid,
    )  # fmt: skip
    reason, shown, message = explain(made, "sandbox")
    assert reason in REASONS
    assert 0 <= shown <= 255
    assert message.isprintable()


@given(st.binary(min_size=512, max_size=512))
def test_counters_times_and_registers_may_be_any_numbers(noise: bytes) -> None:
    """They are in memory that a hijacked guest can write."""
    with (
        Image.from_bytes(trial.elf()) as image,
        Vm(image, VmConfig(mem=4), backend="sandbox", console=CAPTURE) as vm,
    ):
        report = ffi.new("struct run_report *")
        shared = ffi.addressof(report, "shared")
        size = ffi.sizeof(shared.counters) + ffi.sizeof(shared.timeline)
        ffi.memmove(shared, noise, min(size, len(noise)))
        report.event = event(
            kind=lib.EVENT_HALT, registers_valid=1, cookie_valid=1, instruction_bytes=2**32 - 1
        )[0]
        result = vm._make_result(report)
        assert result.counters.exits == int.from_bytes(noise[:8], "little")
        result.boot.since_start_ms("guest_exit")
        assert result.fault is not None
        assert len(bytes.fromhex(result.fault.instruction)) == 16
        assert result.to_dict()["reason"] == "exit"


# ---- templates


def template(image: Image, *, patched: bool, mem_bytes: int = MEM) -> bytes:
    made = image.template(mem_bytes, patched=patched)
    return os.pread(made.fd, os.fstat(made.fd).st_size, 0)


def test_a_patched_template_differs_only_in_call_sites_and_trampolines(image: Image) -> None:
    with Image.from_bytes(trial.elf()) as other:
        plain, patched = template(image, patched=False), template(other, patched=True)
    changed = {i for i, (a, b) in enumerate(zip(plain, patched, strict=True)) if a != b}
    code = trial.code()
    sites = [trial.CODE_GPA + m.start() for m in re.finditer(rb"\xba[\x01-\x08]\x05\x00\x00\xef", code)]
    assert len(sites) == 2
    in_text = {i for i in changed if i >= 0x100000}
    assert in_text <= {at + i for at in sites for i in range(5)}
    assert [patched[at] for at in sites] == [0xE9, 0xE9]
    assert all(0x80000 <= i < 0x80000 + 2 * 32 for i in changed - in_text)
    assert plain[trial.CODE_GPA : trial.CODE_GPA + len(code)] == code


def test_the_order_of_requests_for_templates_does_not_matter() -> None:
    def in_order(*asked: tuple[bool, int]) -> dict[tuple[bool, int], bytes]:
        with Image.from_bytes(trial.elf()) as image:
            return {(patched, mem): template(image, patched=patched, mem_bytes=mem) for patched, mem in asked}

    first, second = (False, MEM), (True, MEM)
    third, fourth = (False, 2 * MEM), (True, 2 * MEM)
    expected = in_order(first) | in_order(second) | in_order(third) | in_order(fourth)
    assert in_order(first, second, third, fourth) == expected
    assert in_order(second, first, fourth, third) == expected
    assert in_order(fourth, third, second, first) == expected


def test_a_template_is_made_once_and_cannot_be_written_to(image: Image) -> None:
    patched, plain = image.template(MEM, patched=True), image.template(MEM)
    files = [os.fstat(made.fd).st_ino for made in (patched, plain)]
    assert files[0] != files[1]
    again = image.template(MEM, patched=True), image.template(MEM)
    assert [os.fstat(made.fd).st_ino for made in again] == files
    for made in (patched, plain):
        with pytest.raises(PermissionError):
            os.pwrite(made.fd, b"x", 0x100000)


# ---- names of system calls


def named(number: int, arch: int) -> str:
    return ffi.string(lib.tn_system_call_name(number, arch)).decode()


def test_the_system_call_tables_agree_with_the_kernels_headers() -> None:
    x86_64, i386 = 0xC000003E, 0x40000003
    assert [named(n, x86_64) for n in (0, 1, 9, 59, 231)] == ["read", "write", "mmap", "execve", "exit_group"]
    assert [named(n, i386) for n in (1, 3, 4, 11, 252)] == ["exit", "read", "write", "execve", "exit_group"]
    for arch, header in ((x86_64, "asm/unistd_64.h"), (i386, "asm/unistd_32.h")):
        numbers = re.findall(r"#define __NR_(\w+) (\d+)$", preprocessed(header), re.MULTILINE)
        assert len(numbers) > 300
        assert {int(number): name for name, number in numbers} == {
            n: named(n, arch) for n in range(2000) if named(n, arch) != "no such call"
        }


def preprocessed(header: str) -> str:
    done = subprocess.run(
        ["cc", "-E", "-dM", "-"], input=f"#include <{header}>\n", capture_output=True, text=True, check=True
    )
    return done.stdout
