"""A crash report as one page of HTML: no other file, no script, and nothing of the guest's that a browser would obey.

Every text goes through `_text`, and a content security policy forbids what is not in the page: a name of a symbol that
is HTML is shown and does nothing.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from typing import Any

from tender.debug.flame_graph import WIDTH, Stacks, boxes_of
from tender.debug.report_text import counters_line, hypercall_line, memory_line, own_place, shown_path
from tender.printable import printable

_STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --fg: #1d2026; --dim: #667; --line: #dcdde2; --mark: #b3261e;
  --panel: #fff; --bar: #4472b8; --code: #f1f2f4; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171b; --fg: #e6e7ea; --dim: #9aa0ac; --line: #343841;
  --mark: #ff8a80; --panel: #1c1f24; --bar: #7ea6e0; --code: #23262c; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 1.6rem 0 .5rem }
.reason { color: var(--mark); font-weight: 600; overflow-wrap: anywhere }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
tr:last-child td { border-bottom: 0 }
code, pre, td.n { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px }
pre { margin: 0; padding: .6rem .8rem }
td.n, .dim { color: var(--dim); white-space: nowrap }
tr.dim { white-space: normal }
.here { background: color-mix(in srgb, var(--mark) 14%, transparent); display: inline-block; min-width: 100% }
.registers { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1rem;
  padding: .5rem .8rem; font-family: ui-monospace, monospace; font-size: 13px }
.registers b { display: inline-block; width: 4.5rem; font-weight: 400; color: var(--dim) }
.tag { border: 1px solid var(--line); border-radius: 9px; padding: 0 .45rem; font-size: 12px; color: var(--dim) }
svg { display: block; width: 100%; height: auto; font: 11px ui-monospace, monospace }
svg text { fill: var(--fg) } svg .bar { fill: var(--bar) } svg .axis { stroke: var(--line) }
svg .flame { fill: color-mix(in srgb, var(--bar) 45%, var(--panel)); stroke: var(--panel) }
"""

_TIMELINE_MAX, _CURVE_MAX = 64, 2000


def html_of(
    report: dict[str, Any],
    *,
    memory_curve: Sequence[tuple[float, int]] = (),
    stacks: Stacks = (),
) -> str:
    """Returns the page.

    Args:
        report: The report.
        memory_curve: Touched memory in bytes by seconds; shown if there are two points.
        stacks: Stacks of a profile, the outermost function first, each with its number of samples.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    image = str(report["image"]).rpartition("/")[2] or "guest"
    parts = [
        f"<h1>{_text(image)} {_text(report['arguments'])}</h1>",
        f"<p class=reason>{_text(_said(report))}</p>",
        _fault(report["fault"]),
        f"<p>in <code>{_text(own_place(report))}</code></p>" if own_place(report) else "",
        _section("Stack", _stack(report["stack"])),
        _section(f"Source: {_place(report)}", _source(report["source"])) if report["source"] else "",
        _section(
            "The guest's own handler of this fault, in which the vCPU stands now",
            _stack(report["vcpu_stack"]),
        )
        if report["vcpu_stack"]
        else "",
        _section("Registers", _registers(report)),
        _section("Last hypercalls, oldest first", _hypercalls(report["hypercalls"]))
        if report["hypercalls"]
        else "",
        _section("Memory", f"<pre>{_text(memory_line(report['memory']))}</pre>" + _curve(memory_curve)),
        _section("Profile", _flame(stacks)) if stacks else "",
        _section("About", _about(report)),
        _section("Next", "<pre>" + "\n".join(_text(it) for it in report["next"]) + "</pre>"),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(image)}: crash report</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(part for part in parts if part)
        + "\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _section(title: str, body: str) -> str:
    return f"<h2>{title if title.startswith('Source') else _text(title)}</h2>\n<div class=panel>{body}</div>"


def _said(report: dict[str, Any]) -> str:
    said = report["message"] or ("the guest is alive" if report["reason"] == "live" else report["reason"])
    return f"{said}, status {report['status']}" if report["status"] is not None else str(said)


def _place(report: dict[str, Any]) -> str:
    source = report["source"]
    return f"<code>{_text(shown_path(source['file']))}:{_text(source['line'])}</code> (#{_text(source['frame'])})"


def _fault(fault: dict[str, Any] | None) -> str:
    if not fault:
        return ""
    if fault["address"] is None:
        words = f": {_text(fault['exception'])}" if fault["exception"] else ""
        return f"<p>at <code>{_hex(fault['rip'])}</code>{words}</p>"
    access = f" ({_text(fault['access'])})" if fault.get("access") else ""
    return (
        f"<p>at <code>{_hex(fault['rip'])}</code>, address <code>{_hex(fault['address'])}</code>{access}: "
        f"{_text(fault['what'])}</p>"
    )


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else _text(value)


def _stack(frames: list[dict[str, Any]]) -> str:
    rows = []
    for number, frame in enumerate(frames):
        tags = "<span class=tag>inlined</span>" if frame["inlined"] else ""
        dim = " class=dim" if frame["library"] else ""
        tags += f" <span class=tag>{_text(frame['library'])}</span>" if frame["library"] else ""
        tags += "" if frame["certain"] else " <span class=tag>found by searching</span>"
        name = frame["function"] or "?"
        offset = (
            ""
            if frame["inlined"] or not frame["function"]
            else f"<span class=dim>+{frame['offset']:#x}</span>"
        )
        place = f"{shown_path(frame['file'])}:{frame['line']}" if frame["file"] else ""
        rows.append(
            f"<tr{dim}><td class=n>{number}<td class=n>{_hex(frame['pc'])}<td><code>{_text(name)}{offset}</code> {tags}"
            f"<td><code>{_text(place)}</code>"
        )
    return f"<table>{''.join(rows)}</table>"


def _source(source: dict[str, Any]) -> str:
    lines = []
    for number, text in source["lines"]:
        line = f"<span class=dim>{int(number):>5}</span>  {_text(text)}"
        lines.append(f"<span class=here>{line}</span>" if number == source["line"] else line)
    return "<pre>" + "\n".join(lines) + "</pre>"


def _registers(report: dict[str, Any]) -> str:
    words = "".join(
        f"<span><b>{_text(name)}</b>{value:016x}</span>"
        for name, value in report["registers"].items()
        if isinstance(value, int)
    )
    code = f"<pre><span class=dim>code at rip</span> {_text(report['code'])}</pre>" if report["code"] else ""
    return f"<div class=registers>{words}</div>{code}"


def _hypercalls(calls: list[dict[str, Any]]) -> str:
    rows = "".join(f"<tr><td><code>{_text(hypercall_line(call))}</code>" for call in calls[-_TIMELINE_MAX:])
    return _timeline(calls[-_TIMELINE_MAX:]) + f"<table>{rows}</table>"


def _timeline(calls: list[dict[str, Any]]) -> str:
    """When each hypercall began and how long it took, if both are known."""
    known = [
        (int(it["begin_ns"]), int(it["end_ns"]), str(it.get("name", "")))
        for it in calls
        if isinstance(it.get("begin_ns"), int)
        and isinstance(it.get("end_ns"), int)
        and it["begin_ns"] <= it["end_ns"]
    ]
    if len(known) < 2:
        return ""
    low, high = min(it[0] for it in known), max(it[1] for it in known)
    if high <= low:
        return ""
    bars = []
    for row, (begin, end, name) in enumerate(known):
        left = 150 + (begin - low) / (high - low) * (WIDTH - 160)
        width = max(1.0, (end - begin) / (high - low) * (WIDTH - 160))
        bars.append(
            f'<text x="8" y="{row * 14 + 12}">{_text(name[:20])}</text>'
            f'<rect class="bar" x="{left:.1f}" y="{row * 14 + 3}" width="{width:.1f}" height="10">'
            f"<title>{_text(name)}: {(end - begin) / 1000:.1f} us</title></rect>"
        )
    return f'<svg viewBox="0 0 {WIDTH} {len(known) * 14 + 6}" role="img">{"".join(bars)}</svg>'


def _curve(points: Sequence[tuple[float, int]]) -> str:
    points = list(points)[-_CURVE_MAX:]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return ""
    top = max(it[1] for it in points) or 1
    start, span = points[0][0], points[-1][0] - points[0][0]
    line = " ".join(
        f"{(at - start) / span * (WIDTH - 20) + 10:.1f},{110 - size / top * 95:.1f}" for at, size in points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} 130" role="img"><line class="axis" x1="10" y1="110" x2="{WIDTH - 10}" y2="110"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f'<text x="10" y="125">{span:.1f} s</text><text x="10" y="12">{top >> 10} KiB</text></svg>'
    )


def _flame(stacks: Stacks) -> str:
    boxes, height = boxes_of(stacks, _text)
    return f'<svg viewBox="0 {-height} {WIDTH} {height}" role="img">{boxes}</svg>' if boxes else ""


def _about(report: dict[str, Any]) -> str:
    rows = [
        ("image", report["image"]),
        ("build id", report["build_id"]),
        ("SHA-256", report["sha256"]),
        ("core", report["core"]),
        ("Tender", report["tender"]),
        ("backend", report["backend"]),
        (
            "devices",
            ", ".join(f"{it.get('kind', '')} {it.get('name', '')}".strip() for it in report["devices"]),
        ),
        ("counted", counters_line(report["counters"])),
        *(("note", note) for note in report["notes"]),
    ]
    return (
        "<table>"
        + "".join(f"<tr><td class=n>{_text(k)}<td><code>{_text(v)}</code>" for k, v in rows if v)
        + "</table>"
    )
