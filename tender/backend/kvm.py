"""KVM's backend: a virtual machine on /dev/kvm, one vCPU, one memslot.

Its descriptors and its `kvm_run` page are the VM's (bindings/python/owner.h). /dev/kvm is opened, and the VM is made, here,
by ioctls through cffi, with errno kept. What is behind the descriptors is C, for the command too:
bindings/machine/kvm/kvm_ops.c.
"""

import grp
import os
from errno import EACCES, EBUSY, ENODEV, ENOENT, ENOEXEC, ENOMEM, EPERM
from typing import Any

from tender.annotations import Backend
from tender.backend import kvm_requests as req
from tender.backend.machine import Machine, machine_error
from tender.cures import cure
from tender.errors import Hints, HostError, KvmUnavailable
from tender.native import CData, lib, says


def open_kvm(handle: CData, path: str = "/dev/kvm") -> int:
    """Opens a KVM that speaks API version 12, and returns the descriptor, which is the VM's.

    Raises KvmUnavailable, which says the way out.
    """
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
        hints = cure("kvm-container")
    return KvmUnavailable(
        f"Could not open: {path}: {os.strerror(errno)}",
        errno=errno,
        code="kvm-denied" if errno in (EACCES, EPERM) else "kvm-missing",
        **hints,
    )


def _denied_hint(path: str) -> str:
    try:
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
    if errno in (EBUSY, ENOMEM):
        hint = "another hypervisor may use the processor's virtualisation, or a limit is reached"
    return HostError(says("ioctl_failed", name, os.strerror(errno)), errno=errno, hint=hint, code="kvm-ioctl")


class KvmVm(Machine):
    """A VM of KVM with its memory in slot 0 and one vCPU in the start state.

    Raises KvmUnavailable, HostError, ImageError.
    """

    def __init__(self, handle: CData, **values: Any) -> None:
        open_kvm(handle)
        machine: int = lib.tn_kvm_create_vm(handle, req.KVM_CREATE_VM)
        if machine < 0:
            raise _failed("CREATE_VM", -machine)
        super().__init__(handle, name=Backend.KVM, **values)

    def _refused(self, error: CData, program: str) -> HostError:
        refused = machine_error(error)
        if refused.code == "memory" and refused.errno == ENOEXEC:
            way_out = "personality(2) sets it, and so does a program whose stack is executable; any exec takes it off"
            refused._set_hints(way_out, way_out)
        return refused
