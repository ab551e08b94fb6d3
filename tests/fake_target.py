"""A guest for a debugger that is no process: registers and memory are plain values, a step goes on by one byte."""

from collections.abc import Sequence

from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.registers import Registers
from tender.debug.target import DebugError, Ended, Facts, Mapping, Stop, Watch, Where

MEM_BYTES = 2 << 20


class FakeTarget:
    """A Target. Its guest runs until a breakpoint that lies ahead, or else until interrupt().

    Attributes:
        place: What where() returns.
        ends: Whether the next resume() ends its process, with `status`.
        done: The calls that changed something, in their order.
    """

    pid = 4711

    def __init__(self, memory: bytes = b"", registers: Registers | None = None) -> None:
        self.memory = bytearray(memory.ljust(MEM_BYTES, b"\0"))
        self.state = registers or Registers(rip=0x100000, rsp=0x1F0000)
        self.place = Where.GUEST
        self.ends = False
        self.status = 0
        self.done: list[str] = []
        self.points: set[tuple[Watch, int]] = set()
        self.runs = False
        self.asked = False

    def facts(self) -> Facts:
        return Facts(version="1", backend="fake", pid=self.pid, image="app.elf", counters={"poll": 3})

    def where(self) -> Where:
        return self.place

    def registers(self) -> Registers:
        return self.state

    def stack_registers(self) -> Registers:
        return self.state

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.memory[gpa : gpa + length])

    def mappings(self) -> Sequence[Mapping]:
        return [Mapping(0x100000, 0x110000, 5), Mapping(0x110000, MEM_BYTES, 6)]

    def cpu_parts(self) -> CpuParts:
        return CpuParts()

    def unfinished(self) -> Unfinished | None:
        return None

    def touched(self) -> Sequence[tuple[int, int]]:
        return [(0x100000, 0x104000)]

    def set_registers(self, registers: Registers) -> None:
        self.done.append("set_registers")
        self.state = registers

    def write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > MEM_BYTES:
            raise DebugError(f"{gpa:#x}: not guest memory")
        self.memory[gpa : gpa + len(data)] = data

    def insert(self, kind: Watch, gpa: int, length: int) -> None:
        if kind is not Watch.SOFTWARE and len(self.points) >= 4:
            raise DebugError("the processor has no free debug register")
        self.points.add((kind, gpa))

    def remove(self, kind: Watch, gpa: int, length: int) -> None:
        self.points.discard((kind, gpa))

    def resume(self, signal: int = 0) -> None:
        self.done.append(f"resume {signal}")
        self.runs = True

    def step(self, signal: int = 0) -> Stop | Ended:
        self.done.append(f"step {signal}")
        self.state = self.state._with(rip=(self.state.rip + 1) % 2**64)
        return Stop(5)

    def interrupt(self) -> None:
        self.asked = True

    def poll(self) -> Stop | Ended | None:
        if self.ends:
            return Ended(self.status)
        ahead = sorted(gpa for kind, gpa in self.points if gpa > self.state.rip and kind is Watch.SOFTWARE)
        if ahead and self.runs:
            self.runs, self.state = False, self.state._with(rip=ahead[0])
            return Stop(5, Watch.SOFTWARE)
        if self.asked:
            self.runs = self.asked = False
            return Stop(2)
        return None

    def kill(self) -> None:
        self.done.append("kill")

    def detach(self) -> None:
        self.points.clear()
        self.done.append("detach")
