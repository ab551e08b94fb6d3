"""The test VM's kernel: a Debian package that is fetched and unpacked, and never installed.

It provides the modules and the uncompressed kernel. The modules are loaded with their dependencies first. These
are read from the modules, because depmod has not run in an unpacked package. The test VM boots the uncompressed
kernel as PVH, which saves the 1.8 s that a compressed kernel takes to unpack itself there.
"""

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

from .cache import Cache
from .errors import KvmboxError, say

# In Bookworm, 6.12 has the first name. Later releases have only the second name.
DEFAULT_PACKAGES = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")

SIGNATURE_MAGIC = b"~Module signature appended~\n"
SIGNATURE_INFO = struct.Struct(">8xI")  # struct module_signature, include/linux/module_signature.h

# Documentation/arch/x86/boot.rst
SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
PAYLOAD = 0x248  # u32 offset, u32 length


def fetch(cache: Cache, package: str | None = None) -> Path:
    """Fetch and unpack the package, or the default one. Raises KvmboxError if apt does not know it."""
    wanted = (package,) if package else DEFAULT_PACKAGES
    real = _resolve(wanted)
    if real is None:
        raise KvmboxError(
            f"apt knows no package {' or '.join(wanted)}: is this Debian, amd64? "
            "Try `apt-get update`, or name one: kvmbox fetch linux-image-..."
        )
    return cache.entry("kernel-" + real.removeprefix("linux-image-"), lambda place: _download(real, place))


def newest(cache: Cache) -> Path:
    """The kernel that was fetched or named last. If there is none, the default one is fetched."""
    kernels = sorted(cache.root.glob("kernel-*"), key=lambda path: path.stat().st_mtime)
    return kernels[-1] if kernels else fetch(cache)


def _resolve(packages: tuple[str, ...]) -> str | None:
    real = _resolve_now(packages)
    if real is None and os.geteuid() == 0:
        say("apt knows no kernel; running apt-get update")
        _apt("apt-get", "-q", "update")
        real = _resolve_now(packages)
    return real


def _resolve_now(packages: tuple[str, ...]) -> str | None:
    """The real package that a metapackage depends on now. A fixed version would vanish from the archive."""
    for package in packages:
        depends = _apt("apt-cache", "depends", "--no-recommends", package)
        if found := re.search(r"Depends: (linux-image-\d\S+)", depends):
            return found[1]
        if depends:
            return package
    return None


def _apt(*command: str) -> str:
    if not shutil.which(command[0]):
        raise KvmboxError(f"{command[0]} is missing: name an unpacked kernel package with --kernel DIR")
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    return done.stdout


def parts(package: str, depends: str) -> list[str]:
    """The packages with the kernel and its modules: `package`, and from Debian 14 on three of its dependencies.

    depends  the output of `apt-cache depends` for it
    """
    return [package, *re.findall(r"Depends: (linux-(?:base|binary|modules)-\d\S+)", depends)]


def _download(package: str, place: Path) -> None:
    say(f"fetching {package}")
    for part in parts(package, _apt("apt-cache", "depends", "--no-recommends", package)):
        # The user _apt may not write here. For users other than root the option has no effect.
        download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", part]
        _call(download, place, f"could not download {part}; try `apt-get update`")
        (deb,) = place.glob("*.deb")
        _call(["dpkg-deb", "-x", deb.name, "."], place, f"could not unpack {deb.name}")
        deb.unlink()


def _call(command: list[str], where: Path, failure: str) -> None:
    done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise KvmboxError(f"{failure}: {done.stderr.strip()}")


class Kernel:
    """A kernel and its modules below `root`, which is an unpacked package, or / for the kernel of this system."""

    def __init__(self, root: Path, release: str | None = None) -> None:
        modules = next((d for d in (root / "lib/modules", root / "usr/lib/modules") if d.is_dir()), None)
        releases = sorted(path.name for path in modules.iterdir()) if modules else []
        if modules is None or not releases:
            raise KvmboxError(f"{root}: not an unpacked kernel package: it has no lib/modules/RELEASE")
        self.release = release or releases[-1]
        self._modules = modules / self.release
        images = (root / "boot" / f"vmlinuz-{self.release}", self._modules / "vmlinuz")
        image = next((path for path in images if path.is_file()), None)
        if image is None:
            raise KvmboxError(f"{images[0]}: no such file; is {root} an unpacked kernel package?")
        self.image = image
        self._files = {_module_name(path.name): path for path in self._modules.glob("kernel/**/*.ko*")}
        builtin = (self._modules / "modules.builtin").read_text().split()
        self._builtin = {_module_name(Path(line).name) for line in builtin}

    def modules(self, names: list[str]) -> list[tuple[str, bytes]]:
        """The named modules and their dependencies, in the order to load them, without modules that are built in."""
        ordered: dict[str, bytes] = {}
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name in seen or name in self._builtin:
                return
            seen.add(name)
            data = self._load(name)
            for needed in module_depends(data):
                visit(needed)
            ordered[name] = data

        for name in names:
            visit(_module_name(name))
        return list(ordered.items())

    def _load(self, name: str) -> bytes:
        if name not in self._files:
            raise KvmboxError(
                f"kernel {self.release} has no module {name}; use a Debian kernel (kvmbox fetch)"
            )
        path = self._files[name]
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = unpack_with("zstd", data)
        return trimmed(data)


def _module_name(name: str) -> str:
    return name.partition(".ko")[0].replace("-", "_")


def module_depends(module: bytes) -> list[str]:
    """The dependencies that a module's .modinfo names."""
    found = re.search(rb"\0depends=([^\0]+)\0", module)
    return [_module_name(name) for name in found[1].decode().split(",")] if found else []


def trimmed(module: bytes) -> bytes:
    """The module without its signature and its BTF, which take time to check in the test VM.

    An unsigned module only taints the kernel. The BTF section is renamed, not removed, so no offset changes.
    """
    if module.endswith(SIGNATURE_MAGIC):
        info_at = len(module) - len(SIGNATURE_MAGIC) - SIGNATURE_INFO.size
        (length,) = SIGNATURE_INFO.unpack_from(module, info_at)
        module = module[: info_at - length]
    return module.replace(b"\0.BTF\0", b"\0.xTF\0")


def vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage. Raises KvmboxError for another file, or an unknown compression."""
    if image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise KvmboxError("the kernel image is not a bzImage")
    setup_sectors = image[SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = (setup_sectors + 1) * 512 + offset
    return _unpacked(image[start : start + length])


def _unpacked(payload: bytes) -> bytes:
    # The kernel's build appends the unpacked size (4 bytes), except for the formats that contain it.
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return unpack_with("zstd", payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return unpack_with("lz4", payload[:-4])
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    raise KvmboxError(f"the kernel is compressed in an unknown way (it starts with {payload[:6].hex()})")


def unpack_with(program: str, data: bytes) -> bytes:
    """Unpack the data with `program -dc`. Raises KvmboxError if the program is missing or fails."""
    if not shutil.which(program):
        raise KvmboxError(f"{program} is missing: apt-get install {program}")
    done = subprocess.run([program, "-dcq"], input=data, capture_output=True)
    # The kernel uses lz4's legacy format. The program reports the end of that format as an error.
    if not done.stdout:
        raise KvmboxError(f"{program} could not unpack the kernel: {done.stderr.decode().strip()}")
    return done.stdout
