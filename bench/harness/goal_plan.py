"""The measurements of `python bench goals` on this machine, by name: which commands make them, and where.

Each is a `python bench` of its own with few samples, so all of them take minutes. If there is a Solo5 tree, peers are
measured too. If KVM is that of the test VM, the figures are instructions (--icount, one CPU). Measurements that need a
time, or two CPUs in parallel, are then left out, because the test VM's CPUs take turns.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


class Plan:
    """`commands`: each measurement's command by its name. `absent`: why a measurement is left out."""

    def __init__(
        self,
        checkout: Path,
        solo5: "Path | None",
        where_kvm: str,
        *,
        mirage: "Path | None" = None,
        long: bool = False,
    ) -> None:
        self.commands: dict[str, tuple[str, ...]] = {}
        self.absent: dict[str, str] = {}
        self._bench = checkout / "bench"
        self._guests = checkout / "bench" / "out" / "solo5"
        self._solo5 = solo5
        self._net_ns = (str(checkout / "tools" / "with_net"), "--")
        self._kvmbox = str(checkout / "tools" / "kvmbox" / "kvmbox")
        self._hello: tuple[str, ...] = ()
        if solo5:
            self._hello = ("--arg", "Hello_Solo5", str(solo5 / "tests" / "test_hello" / "test_hello.hvt"))
        self._plan_sandbox(checkout, long)
        if where_kvm == "none":
            for name in (
                "boot",
                "times",
                "size",
                "mirage",
                "run",
                "hypercall",
                "ways",
                "ring",
                "block",
                "memory",
            ):
                self.absent[f"kvm {name}"] = "KVM was left out: --kvm none"
        else:
            self._plan_kvm(mirage, in_test_vm=where_kvm == "kvmbox")

    def _plan_sandbox(self, checkout: Path, long: bool) -> None:
        backend = ("--backend", "sandbox")
        runs = ("--runs", "40", "--pause", "0")
        hello = self._peer("spt", "{elf:.spt}", "Hello_Solo5") + self._hello
        disk = self._peer("spt", *_DISK, "{elf:.spt}", "{args}") + self._image("block_guest")
        idle = self._image("idle_guest")
        self._add("sandbox boot", (), "boot", *backend, *runs, *hello)
        self._add("sandbox size", (), "size", *backend, "--rounds", "30", "--skip", "tender")
        self._add("sandbox run", (), "run", *backend, *runs, *hello)
        self._add("sandbox hypercall", (), "hypercall", *backend, "--rounds", "15")
        self._add("sandbox net", self._net_ns, "net", *backend, "--rounds", "6", *_cases("tx", "rx"),
                  *self._peer("spt", _TAP, "{elf:.spt}", "{args}"), *self._image("net_guest"))  # fmt: skip
        self._add("sandbox ways", self._net_ns, "ways", *backend, "--rounds", "4", "--case", "serve:64",
                  "--case", "bulk-tx:1514", "--case", "bulk-rx:1514")  # fmt: skip
        self._add("sandbox block", (), "block", *backend, "--rounds", "10", *_REQUESTS, *disk)
        self._add("sandbox cold", (), "block", *backend, "--rounds", "5", "--case", "read:cold:4096", "--requests", "2000",
                  "--disk-mib", "256", "--directory", str(checkout / "bench" / "out"), *disk)  # fmt: skip
        self._add("sandbox memory", (), "memory", *backend, "--guests", "10,100", "--rounds", "1",
                  *self._peer("spt", "{elf:.spt}"), *idle)  # fmt: skip
        self._add("sandbox density", (), "density", *backend, "--max", "200", *idle)
        if long:
            self._add("sandbox many", (), "density", *backend, "--max", "100000", "--reserve", "2048", *idle)
        else:
            self.absent["sandbox many"] = (
                "takes minutes, and most of the machine: use --long, or python bench density --max 100000"
            )

    def _plan_kvm(self, mirage: "Path | None", *, in_test_vm: bool) -> None:
        backend = ("--backend", "kvm")
        through = (self._kvmbox, "run", "--icount", "--") if in_test_vm else self._net_ns
        hello = self._peer("hvt", "{elf}", "Hello_Solo5") + self._hello
        self._add("kvm boot", through, "boot", *backend, "--count", "--runs", "10", *hello)
        self._add(
            "kvm size",
            through,
            "size",
            *backend,
            "--rounds",
            "5" if in_test_vm else "30",
            "--skip",
            "tender",
        )
        if mirage:
            self._add("kvm mirage", through, "boot", *backend, "--count", "--runs", "5", "--mem", "64", "--skip", "library",
                      "--skip", "pool", "--skip", "python", *self._peer("hvt", "{elf}", mem=64), str(mirage))  # fmt: skip
        else:
            self.absent["kvm mirage"] = (
                "no MirageOS image: set TENDER_BENCH_MIRAGE to an image that ends by itself"
            )
        self._add("kvm hypercall", through, "hypercall", *backend, "--rounds", "2" if in_test_vm else "15",
                  "--calls", "5000" if in_test_vm else "20000",
                  *self._peer("hvt", "--net:service={tap}", "--block:storage={disk}", "{elf}", "{args}"))  # fmt: skip
        hvt = self._peer("hvt", _TAP, "{elf}", "{args}")
        # Our own net_guest makes one hypercall per frame with solo5-hvt, too.
        self._add("kvm ways", through, "ways", *backend, "--rounds", "1" if in_test_vm else "6", "--way", "calls",
                  "--way", "batch", *_cases("tx", "rx", "echo"), "--frames", "1000" if in_test_vm else "10000",
                  *hvt)  # fmt: skip
        self._add("kvm block", through, "block", *backend, "--rounds", "1" if in_test_vm else "10", *_REQUESTS,
                  "--requests", "5000" if in_test_vm else "20000", "--disk-mib", "1",
                  *self._peer("hvt", *_DISK, "{elf}", "{args}"), *self._image("block_guest"))  # fmt: skip
        self._add("kvm memory", through, "memory", *backend, "--guests", "10", "--rounds", "1",
                  *self._peer("hvt", "{elf}"), *self._image("idle_guest"))  # fmt: skip
        if in_test_vm:
            why = "a time needs a KVM of this host: "
            self.absent["kvm times"] = f"{why}python bench boot"
            self.absent["kvm ring"] = (
                f"the test VM's CPUs take turns; {why}python bench ways --backend kvm --peer ..."
            )
            # In memory, because the clock leaps while the test VM asks the host for a file.
            skipped = [
                word for name in ("python-path", "module", "python", "site") for word in ("--skip", name)
            ]
            self._add("kvm run", through, "run", *backend, "--in-memory", "--runs", "10", "--pause", "0",
                      *skipped, *hello)  # fmt: skip
        else:
            runs = ("--runs", "40", "--pause", "0")
            self._add("kvm times", through, "boot", *backend, *runs, "--skip", "tender", "--skip", "python")
            # Solo5's build of net_guest uses the ring of solo5-hvt.
            self._add("kvm ring", through, "ways", *backend, "--rounds", "6", "--way", "batch", "--case", "tx:64",
                      "--case", "rx:64", *hvt, *self._image("net_guest"))  # fmt: skip
            self._add("kvm run", through, "run", *backend, *runs, *hello)

    def _image(self, name: str) -> "tuple[str, ...]":
        """Solo5's build of a guest, if peers run it too. Otherwise the benchmark compiles our build."""
        return (str(self._guests / f"{name}.hvt"),) if self._solo5 else ()

    def _peer(self, name: str, *words: str, mem: int = 16) -> "tuple[str, ...]":
        if not self._solo5:
            return ()
        return ("--peer", " ".join((f"{name}={self._solo5}/tenders/{name}/solo5-{name} --mem={mem}", *words)))

    def _add(self, name: str, through: Sequence[str], *words: str) -> None:
        self.commands[name] = (*through, sys.executable, str(self._bench), *words)


_TAP = "--net:service0={tap}"
_DISK = ("--block:storage={disk}", "--block-sector-size:storage={sector}")
_REQUESTS = tuple(f"--case={direction}:seq:{size}" for direction in ("read", "write") for size in (512, 4096))


def _cases(*modes: str) -> "tuple[str, ...]":
    return tuple(f"--case={mode}:{size}" for mode in modes for size in (64, 1514))
