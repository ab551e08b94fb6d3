"""Hints that the library and the command word differently: an argument of one is an option of the other.

The hints of the C core have two columns too (bindings/vm/exit_report.c). A hint that both word alike stands where the
error is raised.
"""

from tender.errors import Hints

_CURES = {
    "mem-max": (
        "an hvt guest addresses at most 4 GiB: mem=4096 or less",
        "an hvt guest addresses at most 4 GiB: use --mem=4096 or less",
    ),
    "mem-min": (
        "give it more memory: mem={mib} or more",
        "give it more memory: --mem={mib} or more",
    ),
    "device-unnamed": (
        "name one: {kind}={{{name!r}: {example}}}",
        "name one: --{kind}:{quoted}={value}",
    ),
    "device-missing": ("add: {arguments}", "add: {options} {image}"),
    "kvm-container": (
        "this container may not open it: it must be started with the device /dev/kvm",
        "this container may not open it: pass --device /dev/kvm",
    ),
    "tun-missing": (
        "load the driver, as root: modprobe tun; a container must be started with the device /dev/net/tun",
        "load the driver, as root: modprobe tun; in a container: --device /dev/net/tun",
    ),
    "tun-container": (
        "this container may not open it: it must be started with the device /dev/net/tun",
        "this container may not open it: --device /dev/net/tun",
    ),
    "console-socket": (
        "connect to it and give the descriptor: console=FD",
        "connect to it and give the descriptor: fd:N",
    ),
    "disk-denied": (
        "you may not open it for writing: check its mode, or give it with read_only=True",
        "you may not open it for writing: check its mode, or give it read-only: {path}:ro",
    ),
    "disk-suffix": (
        "a path of the library has no suffixes: give read_only=True, raw=True",
        "there is no file of that name; suffixes have this order: PATH:raw:ro",
    ),
    "disk-read-only-files": (
        "the file system is read-only: give it with read_only=True",
        "the file system is read-only: {path}:ro",
    ),
    "disk-locked": (
        "one writer, or any number of readers: read_only=True for all of them; or a copy: cp {source} COPY; "
        "or wait for it: lock_wait=SECONDS",
        "one writer, or any number of readers: {path}:ro in all of them; or a copy: cp {source} COPY; "
        "or wait for it: --lock-wait=SECONDS",
    ),
    "disk-write-only": (
        "open it with O_RDWR; or with O_RDONLY, and give it with read_only=True",
        "open it with O_RDWR; or with O_RDONLY, and give it read-only: {path}:ro",
    ),
    "disk-read-only": (
        "give it with read_only=True; or open it with O_RDWR",
        "give it read-only: {path}:ro; or open it with O_RDWR",
    ),
    "disk-sealed": (
        "give it with read_only=True; or an unsealed copy",
        "give it read-only: {path}:ro; or an unsealed copy",
    ),
    "disk-format": (
        "convert it: qemu-img convert -O raw {path} RAW; or, if its bytes are the disk's, give it with raw=True",
        "convert it: qemu-img convert -O raw {path} RAW; or, if its bytes are the disk's, give {path}:raw",
    ),
}
"""Each hint in the words of the library and in the words of the command."""


SUFFIXES = (":ro", ":rw", ":raw")
"""The suffixes of a disk's path on the command line."""


def cure(of: str, /, **values: object) -> Hints:
    """Returns both hints as arguments of an error: TenderError(message, **cure("mem-max"))."""
    library, command = _CURES[of]
    return {"hint": library.format(**values), "command_hint": command.format(**values)}
