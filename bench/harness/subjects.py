"""Commands that a small C program starts, with its time stamps. It is closer to the kernel than Python is."""

from collections.abc import Mapping, Sequence

from tender.bench import facts
from tender.bench.points import RUN_POINTS, SPAWNED_POINTS, Sample
from tender.bench.subjects import LIMIT_S, LineSubject


class SpawnedSubject(LineSubject):
    """A command that a small C program (bench/spawn_loop.c) starts, as close to the kernel as the library's spawn."""

    kind = "spawned"
    points = SPAWNED_POINTS

    def __init__(self, name: str, command: Sequence[str], *, spawner: str) -> None:
        super().__init__(name, (spawner, *command), piped=True)

    def parse(self, line: str, seen: int) -> Sample:
        spawn, reaped, cpu_ns, faults = map(int, line.split())
        stamps = (("spawn", spawn), ("console_seen", seen), ("reaped", reaped))
        return Sample(
            {name: stamp - spawn for name, stamp in stamps if stamp}, cpu_ns=cpu_ns, minor_faults=faults
        )


class RunSubject(LineSubject):
    """A command from spawn to reaped. A small C program (bench/run_loop.c) takes the time at every point."""

    kind = "run"
    points = RUN_POINTS

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        runner: str,
        within: Sequence[str] = (),
        environment: "Mapping[str, str] | None" = None,
    ) -> None:
        words = (*within, runner, f"{facts.limit_s(LIMIT_S) or 0:.0f}", *command)
        super().__init__(name, words, piped=False, environment=environment)

    def parse(self, line: str, seen: int) -> Sample:
        *stamps, cpu_ns, faults = map(int, line.split())
        named = zip(RUN_POINTS, stamps, strict=True)
        points = {name: stamp - stamps[0] for name, stamp in named if stamp}
        return Sample(points, cpu_ns=cpu_ns, minor_faults=faults)
