"""Door 1: a virtual machine on /dev/kvm, one vCPU, one memslot.

Its descriptors and its `kvm_run` page are the VM's (bindings/python/owner.h). /dev/kvm is opened, and the VM and its vCPU
are made, here, by ioctls through cffi, with errno kept. What is behind the descriptors is C, for the command too:
bindings/machine/kvm/kvm_machine.c.
"""

import os
from errno import EACCES, EBUSY, ENODEV, ENOENT, ENOEXEC, ENOMEM, EPERM

from tender.annotations import NetRing
from tender.backend import kvm_requests as req
from tender.backend import ring_mode
from tender.backend.machine import Machine, machine_error
from tender.errors import Hints, HostError, KvmUnavailable
from tender.image import Image
from tender.native import CData, ffi, host_error, lib, says


def open_kvm(handle: CData, path: str = "/dev/kvm") -> int:
    """A descriptor, the VM's, of a KVM that speaks API version 12. Raises KvmUnavailable with the cure."""
    fd: int = lib.tn_kvm_open(handle, path.encode())
    if fd < 0:
        raise _cannot_open(path, -fd)
    version = lib.tn_ioctl_int(fd, req.KVM_GET_API_VERSION, 0)
    if version < 0:
        raise KvmUnavailable(f"{path}: not KVM: {os.strerror(-version)}", errno=-version)
    if version != lib.KVM_API_VERSION:
        raise KvmUnavailable(says("api_version", version, lib.KVM_API_VERSION))
    return fd


def _cannot_open(path: str, errno: int) -> KvmUnavailable:
    hints: Hints = {"hint": ""}
    if errno in (ENOENT, ENODEV):
        hints = {"hint": "no KVM here; `tender doctor` says why and what to do"}
    elif errno == EACCES:
        hints = {"hint": _denied_hint(path)}
    elif errno == EPERM:
        from tender.cures import cure

        hints = cure("kvm-container")
    return KvmUnavailable(
        f"Could not open: {path}: {os.strerror(errno)}",
        errno=errno,
        code="kvm-denied" if errno in (EACCES, EPERM) else "kvm-missing",
        **hints,
    )


def _denied_hint(path: str) -> str:
    try:
        import grp

        about = os.stat(path)
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
    if name == "CREATE_VM" and errno in (EBUSY, ENOMEM):
        hint = "another hypervisor may hold the processor's virtualisation, or a limit is reached"
    return HostError(says("ioctl_failed", name, os.strerror(errno)), errno=errno, hint=hint, code="kvm-ioctl")


class KvmVm(Machine):
    """A VM with its memory in slot 0 and one vCPU in the start state.

    handle  the VM that descriptors and the `kvm_run` page become a part of, and end with

    Raises KvmUnavailable, HostError, ImageError.
    """

    name = "kvm"
    serves_again = True

    def __init__(
        self,
        handle: CData,
        *,
        image: Image,
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        net_ring: NetRing,
    ) -> None:
        self.fallback = ""
        self.handle = handle
        self._mem_bytes = mem_bytes
        try:
            self._create(lib.tn_vm(handle), image, mem_bytes, net_ring)
        except HostError:
            lib.tn_machine_close(handle)  # another machine may take the VM
            raise
        self.write_boot_info(image, manifest, cmdline)

    def _create(self, vm: CData, image: Image, mem_bytes: int, net_ring: NetRing) -> None:
        kvm = open_kvm(self.handle)
        machine = self._made("CREATE_VM", kvm, req.KVM_CREATE_VM)
        template = image.template(mem_bytes)
        mode = ring_mode(image, mem_bytes, net_ring)
        answer = lib.tn_vm_map(vm, image.elf.c, template.fd, mem_bytes, mode)
        lib.tn_descriptor_close(template)
        if answer == -ENOEXEC:
            raise HostError(
                f"{says('memory_refused')}: this process could execute it: its personality is READ_IMPLIES_EXEC",
                errno=ENOEXEC,
                code="memory",
                hint="what sets it: personality(2), or a program whose stack is executable; any exec takes it off",
            )
        if answer < 0:
            raise host_error(says("memory_refused"), -answer, code="memory")
        error = ffi.new("struct machine_error *")
        self._done(lib.tn_kvm_prepare(self.handle, error), error)
        self.vcpu_fd = self._made("CREATE_VCPU", machine, req.KVM_CREATE_VCPU, is_vcpu=True)
        self._done(lib.tn_kvm_finish(self.handle, image.entry, error), error)

    def _made(self, name: str, fd: int, request: int, *, is_vcpu: bool = False) -> int:
        made: int = lib.tn_kvm_create(self.handle, fd, request, is_vcpu)
        if made < 0:
            raise _failed(name, -made)
        return made

    @staticmethod
    def _done(answer: int, error: CData) -> None:
        if answer < 0:
            raise machine_error(error)
