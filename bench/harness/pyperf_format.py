"""Series of samples as pyperf's JSON (its format 1.0), for `pyperf compare_to`, `pyperf stats` and `pyperf hist`.

pyperf has seconds, bytes and counts, and takes less for better. So a rate is written as seconds per thing. Each sample
is a run with one value, because all other subjects run between two samples of one subject.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tender._version import __version__

Document = dict[str, object]


@dataclass(frozen=True)
class Unit:
    """The unit of a series. `pyperf` is second, byte or integer. A value is `scale` times that; a rate is its inverse."""

    label: str
    pyperf: str
    scale: float = 1.0
    rate: bool = False

    def to_pyperf(self, value: float) -> float:
        return self.scale / value if self.rate else self.scale * value


MILLISECONDS = Unit("milliseconds", "second", 1e-3)
_CPU_FACTS = (("cpu", "cpu_model_name"), ("kernel", "platform"), ("python", "python_version"))


def document(
    benchmark: str, series: "Mapping[str, Sequence[float]]", unit: Unit, host: "Mapping[str, Any]"
) -> Document:
    """The object to write as JSON. A series with a value that pyperf does not accept (0) is left out."""
    metadata = {theirs: str(host[ours]) for ours, theirs in _CPU_FACTS if host.get(ours)}
    return {
        "version": "1.0",
        "metadata": {**metadata, "tender_version": __version__, "unit": unit.pyperf},
        "benchmarks": [
            {
                "metadata": {"name": f"tender-{benchmark} {name}"},
                "runs": [{"values": [unit.to_pyperf(value)]} for value in values],
            }
            for name, values in series.items()
            if values and all(value > 0 for value in values)
        ],
    }
