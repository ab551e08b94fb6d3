"""How a run ended, for a program (--json) and for a person (--stats)."""

import json

from tender.annotations import BootStep
from tender.cli import outputs, say
from tender.cli.options import RunOptions
from tender.errors import TenderError
from tender.native import says
from tender.printable import printable, unicode_text
from tender.result import VmResult

SCHEMA = 1
_STEPS: tuple[BootStep, ...] = ("vm_created", "first_run", "first_exit", "first_console", "guest_exit")


def ended(result: VmResult, options: RunOptions, signal: int) -> dict[str, object]:
    """Returns the result object of a run. `signal` is the number of the signal that stopped it, or 0."""
    plain = result.to_dict()
    del plain["console"]
    plain["boot_ms"] = {step: result.boot.since_start_ms(step) for step in _STEPS}
    return {"schema": SCHEMA, "image": options.image, "signal": signal or None, **plain, "error": None}


def without_result(
    error: Exception,
    options: RunOptions,
    *,
    reason: str = "not-started",
    status: int = 1,
    signal: int | None = None,
) -> dict[str, object]:
    """Returns the result object of a guest that could not start, or whose run a mistake in Tender ended."""
    known = error if isinstance(error, TenderError) else _unexpected(error)
    return {
        "schema": SCHEMA,
        "image": options.image,
        "signal": signal,
        "reason": reason,
        "status": status,
        "guest_status": None,
        "message": known.message,
        "error": known.to_dict(),
    }


def _unexpected(error: Exception) -> TenderError:
    return TenderError(f"{type(error).__name__}: {error}", code="internal-error")


def to_json(value: object) -> str:
    """Returns `value` as JSON for any reader. A byte of a name that is not text is shown as that byte: `\\xff`."""
    return json.dumps(_of_text(value))


def _of_text(value: object) -> object:
    if isinstance(value, str):
        return unicode_text(value)
    if isinstance(value, dict):
        return {key: _of_text(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_of_text(part) for part in value]
    return value


def write_json(value: dict[str, object], options: RunOptions) -> None:
    """Writes one line of JSON to where --json says. A failure is reported and changes nothing else."""
    line = to_json(value) + "\n"
    if options.json == 2:
        say.plain(line[:-1])
        return
    try:
        if isinstance(options.json, str):
            outputs.empty(options.json_fd)
        say.write(options.json_fd, line.encode())
    except OSError as error:
        where = f"fd:{options.json}" if isinstance(options.json, int) else printable(options.json or "")
        why = says("not_read") if isinstance(error, TimeoutError) else error.strerror
        say.error(says("report_lost", where, why))


def stats(result: VmResult) -> str:
    """Returns lines for a person: how the run ended, the times of the boot, and what was counted."""
    counters = result.counters
    lines = [f"ended      {result.reason}, status {result.status}", f"backend    {result.backend}"]
    for step in _STEPS:
        at_ms = result.boot.since_start_ms(step)
        if at_ms is not None:
            lines.append(f"boot       {at_ms:10.3f} ms  {step.replace('_', ' ')}")
    hypercalls = ", ".join(f"{name} {count}" for name, count in counters.hypercalls.items() if count)
    lines.append(f"exits      {counters.exits}")
    lines.append(f"hypercalls {hypercalls or 'none'}")
    if result.backend == "sandbox":
        lines.append(
            f"sandbox    {counters.trapped_hypercalls} hypercalls by a signal, {counters.emulated} instructions"
            f" emulated, {counters.guest_faults} exceptions delivered"
        )
    lines.append(f"console    {counters.console_bytes} bytes, {counters.console_lost_bytes} lost")
    if counters.net_rx_packets or counters.net_tx_packets or counters.net_tx_drops or counters.net_rx_errors:
        lines.append(
            f"net        in {counters.net_rx_packets} packets, {counters.net_rx_bytes} bytes;"
            f" out {counters.net_tx_packets} packets, {counters.net_tx_bytes} bytes;"
            f" {counters.net_batches} batches; {counters.net_tx_drops + counters.net_rx_drops} dropped,"
            f" {counters.net_rx_errors} errors"
        )
    if counters.net_detached:
        plural = "" if counters.net_detached == 1 else "s"
        lines.append(
            f"net        {counters.net_detached} interface{plural} deleted, {counters.net_attached} attached again"
        )
    if counters.net_ring_packets or counters.net_ring_kicks:
        lines.append(
            f"net ring   {counters.net_ring_packets} of these packets, {counters.net_ring_kicks} kicks"
        )
    if counters.block_reads or counters.block_writes or counters.block_errors:
        lines.append(
            f"block      {counters.block_reads} reads, {counters.block_read_bytes} bytes;"
            f" {counters.block_writes} writes, {counters.block_write_bytes} bytes;"
            f" {counters.block_flushes} flushes, {counters.block_batches} batches; {counters.block_errors} errors"
        )
    return "\n".join(lines)
