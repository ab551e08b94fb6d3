"""Door 1: a virtual machine on /dev/kvm, one vCPU, one memslot.

Its descriptors and its `kvm_run` page are the VM's (bindings/python/owner.h). The ioctls are made here, through cffi, with
errno kept; from the first KVM_RUN on the loop is C (bindings/machine/kvm/run_kvm.c).
"""

import posix  # not os: its ABCs cost a tenth of the command's start

from tender.backend import kvm_requests as req
from tender.backend import ring_mode
from tender.backend.kvm_cpu import write_regs, write_sregs
from tender.errors import HostError, KvmUnavailable
from tender.native import CData, check, ffi, host_error, lib
from tender.values import Owner

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from typing import Final

    from tender.annotations import IsolationLayer, NetRing
    from tender.errors import Hints
    from tender.image import Image

_CPUID_ENTRIES = 256
_HOST: "dict[str, CData]" = {}
"""What this host's KVM answers every VM alike, asked by the first: the CPUID leaves a guest sees, the size of a
vCPU's shared page, a fresh vCPU's system registers with the start state written over them (a hundred fields,
set one by one through cffi, cost more than most ioctls), and the rest of its state if
VMs are to be reset. Two threads that ask at once get equal answers."""
_ENOENT, _EACCES, _EPERM, _ENODEV, _EBUSY, _ENOMEM, _EIO, _ENOEXEC, _ENOTTY = 2, 13, 1, 19, 16, 12, 5, 8, 25
_EINVAL = 22
_EINTR = 4


def open_kvm(handle: CData, path: str = "/dev/kvm") -> int:
    """A descriptor, the VM's, of a KVM that speaks API version 12. Raises KvmUnavailable with the cure."""
    fd: int = lib.tn_kvm_open(handle, path.encode())
    if fd < 0:
        raise _cannot_open(path, -fd)
    version = lib.tn_ioctl_int(fd, req.KVM_GET_API_VERSION, 0)
    if version < 0:
        raise KvmUnavailable(f"{path}: not KVM: {posix.strerror(-version)}", errno=-version)
    if version != lib.KVM_API_VERSION:
        raise KvmUnavailable(f"KVM: API version is {version}, tender requires version {lib.KVM_API_VERSION}")
    return fd


def _cannot_open(path: str, errno: int) -> KvmUnavailable:
    hints: Hints = {"hint": ""}
    if errno in (_ENOENT, _ENODEV):
        hints = {"hint": "no KVM here; `tender doctor` says why and what to do"}
    elif errno == _EACCES:
        hints = {"hint": _denied_hint(path)}
    elif errno == _EPERM:
        from tender.cures import cure

        hints = cure("kvm-container")
    return KvmUnavailable(
        f"Could not open: {path}: {posix.strerror(errno)}",
        errno=errno,
        code="kvm-denied" if errno in (_EACCES, _EPERM) else "kvm-missing",
        **hints,
    )


def _denied_hint(path: str) -> str:
    try:
        import grp

        about = posix.stat(path)
        group = grp.getgrgid(about.st_gid).gr_name
    except (OSError, KeyError):
        return "`tender doctor` shows whose it is"
    if about.st_gid == 0 or about.st_mode & 0o060 != 0o060:
        return f"no group gives access to it: sudo setfacl -m u:$USER:rw {path}; `tender doctor` shows whose it is"
    return (
        f"join the group that owns it (usermod -aG {group} $USER) and log in again; `tender doctor` shows it"
    )


def _failed(name: str, errno: int) -> HostError:
    hint = ""
    if name == "CREATE_VM" and errno in (_EBUSY, _ENOMEM):
        hint = "another hypervisor may hold the processor's virtualisation, or a limit is reached"
    return HostError(
        f"KVM: ioctl ({name}) failed: {posix.strerror(errno)}", errno=errno, hint=hint, code="kvm-ioctl"
    )


def _int(fd: int, name: str, request: int, argument: int = 0) -> int:
    answer: int = lib.tn_ioctl_int(fd, request, argument)
    while answer == -_EINTR:  # a signal, whose handler has run by now
        answer = lib.tn_ioctl_int(fd, request, argument)
    if answer < 0:
        raise _failed(name, -answer)
    return answer


def _ptr(fd: int, name: str, request: int, argument: CData) -> int:
    answer: int = lib.tn_ioctl_ptr(fd, request, argument)
    while answer == -_EINTR:
        answer = lib.tn_ioctl_ptr(fd, request, argument)
    if answer < 0:
        raise _failed(name, -answer)
    return answer


def _supported_cpuid(kvm: int) -> CData:
    room = ffi.sizeof("struct kvm_cpuid2") + _CPUID_ENTRIES * ffi.sizeof("struct kvm_cpuid_entry2")
    storage = ffi.new("uint64_t[]", room // 8 + 1)
    cpuid = ffi.cast("struct kvm_cpuid2 *", storage)
    cpuid.nent = _CPUID_ENTRIES
    _ptr(kvm, "GET_SUPPORTED_CPUID", req.KVM_GET_SUPPORTED_CPUID, cpuid)
    lib.tn_kvm_filter_cpuid(cpuid)
    return storage  # the owner: a cast pointer does not keep it alive


def _start_sregs(vcpu: int) -> CData:
    """The start state's system registers: a fresh vCPU's own, with ours written over them."""
    sregs = ffi.new("struct kvm_sregs *")
    _ptr(vcpu, "GET_SREGS", req.KVM_GET_SREGS, sregs)
    write_sregs(sregs)
    return sregs


class KvmVm(Owner):
    """A VM with its memory in slot 0 and one vCPU in the start state.

    handle  the VM that descriptors and the `kvm_run` page become a part of, and end with

    Raises KvmUnavailable, HostError, ImageError.
    """

    name: "Final" = "kvm"

    def __init__(
        self,
        handle: CData,
        *,
        image: "Image",
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        net_ring: "NetRing",
    ) -> None:
        self.fallback = ""
        self.handle = handle
        self._fresh: CData = ffi.NULL
        self._mem_bytes = mem_bytes
        try:
            self._create(lib.tn_vm(handle), image, mem_bytes, net_ring)
        except HostError:
            lib.tn_kvm_close(handle)  # the VM may become a sandbox
            raise
        self.write_boot_info(image, manifest, cmdline)

    def _create(self, vm: CData, image: "Image", mem_bytes: int, net_ring: "NetRing") -> None:
        kvm = self._kvm_fd = open_kvm(self.handle)
        lib.tn_kvm_empty_kept()
        machine = self._made("CREATE_VM", kvm, req.KVM_CREATE_VM)
        template = image.template(mem_bytes)
        mode = ring_mode(image, mem_bytes, net_ring)
        answer = lib.tn_vm_map(vm, image.elf.c, template.fd, mem_bytes, mode)
        lib.tn_descriptor_close(template)
        if answer == -_ENOEXEC:
            raise HostError(
                "Error allocating guest memory: this process could execute it: its personality is READ_IMPLIES_EXEC",
                errno=_ENOEXEC,
                code="memory",
                hint="what sets it: personality(2), or a program whose stack is executable; any exec takes it off",
            )
        if answer < 0:
            raise host_error("Error allocating guest memory", -answer, code="memory")
        self._filter_msrs(machine)
        answer = lib.tn_kvm_set_memory(vm, machine)
        if answer < 0:
            raise _failed("SET_USER_MEMORY_REGION", -answer)
        self.vcpu_fd = self._made("CREATE_VCPU", machine, req.KVM_CREATE_VCPU, is_vcpu=True)
        run_bytes = _HOST.get("run_bytes") or _HOST.setdefault(
            "run_bytes", _int(kvm, "GET_VCPU_MMAP_SIZE", req.KVM_GET_VCPU_MMAP_SIZE)
        )
        self._run_page = lib.tn_kvm_map_run(self.handle, run_bytes)
        if self._run_page == ffi.NULL:
            raise _failed("mmap of kvm_run", ffi.errno)
        self._set_cpuid(kvm)
        self._enforce_shown_features(self.vcpu_fd)
        sregs = _HOST.get("sregs") or _HOST.setdefault("sregs", _start_sregs(self.vcpu_fd))
        _ptr(self.vcpu_fd, "SET_SREGS", req.KVM_SET_SREGS, sregs)
        self._regs = ffi.new("struct kvm_regs *")
        write_regs(self._regs, entry=image.entry, mem_bytes=lib.tn_vm_memory_bytes(vm))
        _ptr(self.vcpu_fd, "SET_REGS", req.KVM_SET_REGS, self._regs)
        self.tsc_hz = self._tsc_khz() * 1000

    def _made(self, name: str, fd: int, request: int, *, is_vcpu: bool = False) -> int:
        made: int = lib.tn_kvm_create(self.handle, fd, request, is_vcpu)
        if made < 0:
            raise _failed(name, -made)
        return made

    def _set_cpuid(self, kvm: int) -> None:
        """The guest sees what KVM supports but for what bindings/machine/kvm/guest_cpu.c hides."""
        cpuid = _HOST.get("cpuid") or _HOST.setdefault("cpuid", _supported_cpuid(kvm))
        _ptr(self.vcpu_fd, "SET_CPUID2", req.KVM_SET_CPUID2, cpuid)

    def _enforce_shown_features(self, vcpu: int) -> None:
        """As machine.c does. EINVAL: a kernel before 5.10, and KVM's own choice stands: the doctor says so."""
        enforce = ffi.new("struct kvm_enable_cap *")
        enforce.cap = lib.KVM_CAP_ENFORCE_PV_FEATURE_CPUID
        enforce.args[0] = 1
        answer = lib.tn_ioctl_ptr(vcpu, req.KVM_ENABLE_CAP, enforce)
        if answer < 0 and answer != -_EINVAL:
            raise _failed("ENABLE_CAP (ENFORCE_PV_FEATURE_CPUID)", -answer)

    def _filter_msrs(self, machine: int) -> None:
        """A kernel before 5.10 has no such filter, and KVM's own choice stands: the doctor says so.

        Before there is a vCPU, which would have to go through its registers again. Not as the first thing
        either: soon after VM or memory slot, the grace period that KVM waits for is no expedited one (SRCU's
        exp_holdoff) but takes a tick.
        """
        answer = lib.tn_ioctl_ptr(machine, req.KVM_X86_SET_MSR_FILTER, lib.tn_kvm_msr_filter())
        if answer < 0 and answer != -_ENOTTY:
            raise _failed("X86_SET_MSR_FILTER", -answer)

    def _tsc_khz(self) -> int:
        khz: int = lib.tn_ioctl_int(self.vcpu_fd, req.KVM_GET_TSC_KHZ, 0)
        if khz == -_EIO:
            raise HostError("KVM: host TSC is unstable, cannot continue", errno=_EIO, code="tsc-unstable")
        return check(khz, "KVM: ioctl (GET_TSC_KHZ) failed")

    def isolation(self, layers: int) -> "tuple[IsolationLayer, ...]":
        """KVM's; the process is not confined."""
        return ("kvm",)

    def write_boot_info(self, image: "Image", manifest: CData, cmdline: bytes) -> None:
        """What the guest will be told; until the first run it may be said again."""
        line = ffi.from_buffer(cmdline + b"\0")
        lib.tn_vm_write_boot_info(
            lib.tn_vm(self.handle), image.elf.c, manifest, self.tsc_hz, line, len(cmdline)
        )

    def keep(self, image: "Image") -> bool:
        """Before the first run: this machine will be reset(). True: it can be."""
        template = image.template(self._mem_bytes)
        answer = lib.tn_vm_keep(lib.tn_vm(self.handle), template.fd)
        lib.tn_descriptor_close(template)
        check(answer, "keeping the image's memory")
        self._fresh = _HOST.get("fresh") or _HOST.setdefault("fresh", self._take_fresh())
        return True

    def _take_fresh(self) -> CData:
        fresh = lib.tn_kvm_fresh(self._kvm_fd, self.vcpu_fd)
        if fresh == ffi.NULL:
            raise host_error("KVM: the state of a fresh vCPU cannot be read", ffi.errno, code="kvm-ioctl")
        return fresh

    def reset(self) -> None:
        """As it was before the first run, but for the boot info. Raises HostError; it is then only to be closed."""
        answer = lib.tn_kvm_reset(self._fresh, self.vcpu_fd, self._run_page, _HOST["sregs"], self._regs)
        check(answer, "KVM: resetting the vCPU")
        # Behind it: KVM completes the last guest's exit there, and that of an `ins` writes to guest memory.
        check(lib.tn_vm_reset(lib.tn_vm(self.handle)), "resetting guest memory")
