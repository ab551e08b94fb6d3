"""Metrics without guests: the text that readers parse, the HTTP server with bad clients, and the dashboard."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from tender import Counters, RunningGuest, RunState
from tender.cli import metrics
from tender.watch import exporter
from tender.watch.openmetrics import Look, families_of, text_of
from tender.watch.running import _blank
from tender.watch.trend import Growth

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
LONG = 32 << 20  # bytes, more than a connection takes without a reader
DASHBOARD = ROOT / "docs" / "grafana" / "tender.json"


def guest(**fields: Any) -> RunningGuest:
    """A guest with three devices, with other values of these fields."""
    counts: dict[str, Any] = {name: number for number, name in enumerate(Counters.__slots__)}
    values: dict[str, Any] = dict.fromkeys(RunningGuest.__slots__, 1.0) | {
        "id": "4711-1000-7f00", "pid": 4711, "name": "app", "image": "/srv/app.elf", "backend": "kvm",
        "build_id": "0123abcd", "user": "web", "state": RunState.WAITS, "why": "", "cgroup": "/a.slice",
        "container": "c1", "mem_bytes": 64 << 20, "touched_bytes": 5 << 20, "resident_bytes": 6 << 20,
        "counters": Counters(**(counts | {"hypercalls": {"poll": 8, "puts": (1 << 64) - 1}})),
        "devices": {"net0": "net", "net1": "net", "disk": "block"}, "looked_ns": time.monotonic_ns(),
    }  # fmt: skip
    return RunningGuest(**(values | fields))


GROWTH = Growth(
    bytes_per_s=1.0, least=1.0, most=1.0, full_in_s=3600.5, full_in_least_s=1.0, full_in_most_s=1.0
)


def look(*guests: RunningGuest, growths: dict[str, Growth] | None = None) -> Look:
    return Look(guests, growths or {}, 0.0125, 3)


def samples(text: str, *, classic: bool) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples as the parser of Prometheus's own client library reads them."""
    families = parse_classic(text) if classic else parse_openmetrics(text)
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


@pytest.mark.parametrize("classic", [False, True])
def test_the_text_is_read_by_prometheus_own_parser(classic: bool) -> None:
    own = (("id", "4711-1000-7f00"), ("vm", "app"))
    read = samples(
        text_of(families_of(look(guest(), growths={guest().id: GROWTH})), classic=classic), classic=classic
    )

    def of(name: str, **labels: str) -> float:
        return read[f"tender_vm_{name}", tuple(sorted((*own, *labels.items())))]

    about = {
        "pid": "4711", "image": "/srv/app.elf", "backend": "kvm", "build_id": "0123abcd", "user": "web",
        "cgroup": "/a.slice", "container": "c1",
    }  # fmt: skip
    assert of("info", **about) == 1
    assert (of("state", state="waits"), of("state", state="wedged")) == (1, 0)
    assert of("memory_limit_bytes") == 64 << 20
    assert of("memory_exhaustion_seconds") == 3600.5
    assert of("cpu_seconds_total", mode="guest") == 1.0
    assert of("hypercalls_total", call="poll") == 8
    assert of("hypercalls_total", call="puts") == (1 << 64) - 1
    assert of("start_time_seconds") == pytest.approx(time.time() - 1, abs=5)
    counters = guest().counters
    assert counters
    assert of("exits_total") == counters.exits
    assert of("network_receive_bytes_total", device="all") == counters.net_rx_bytes
    assert of("block_written_bytes_total", device="disk") == counters.block_write_bytes
    assert read["tender_exporter_guests", ()] == 1


def test_the_openmetrics_text_ends_and_names_units_and_the_other_does_not() -> None:
    text = text_of(families_of(look(guest())))
    assert text.endswith("# EOF\n")
    assert "# TYPE tender_vm_cpu_seconds counter\n# UNIT tender_vm_cpu_seconds seconds\n" in text
    classic = text_of(families_of(look(guest())), classic=True)
    assert "# TYPE tender_vm_cpu_seconds_total counter\n" in classic
    assert "EOF" not in classic and "UNIT" not in classic and " info\n" not in classic


def test_each_name_keeps_the_rules_of_names() -> None:
    """https://prometheus.io/docs/practices/naming/: a unit at the end, and a suffix for counters alone."""
    for family in families_of(look(guest())):
        assert re.fullmatch(r"tender_(vm|exporter)(_[a-z]+)*", family.name)
        assert family.name.endswith(family.unit)
        assert not family.name.endswith(("_total", "_info"))
        assert ("_bytes" in family.name) == (family.unit == "bytes")
        assert ("_seconds" in family.name) == (family.unit == "seconds")


@pytest.mark.parametrize("classic", [False, True])
def test_no_name_of_a_guest_breaks_the_text(classic: bool) -> None:
    hostile = 'a"} 1\ntender_vm_exits_total{vm="forged'
    guests = [
        guest(id=str(i), name=name, image=name, devices={name: "net"})
        for i, name in enumerate((hostile, "\x1b[2J", "\udcff", "\\", '"', "x" * 5000, "", "é"))
    ]
    read = samples(text_of(families_of(look(*guests)), classic=classic), classic=classic)
    names = [dict(labels)["vm"] for name, labels in read if name == "tender_vm_exits_total"]
    assert names == [
        'a"} 1\\x0atender_vm_exits_total{vm="forged', "\\x1b[2J", "\\xff", "\\", '"', "x" * 255 + "…", "", "é",
    ]  # fmt: skip


def test_a_guest_that_cannot_be_read_has_what_is_known() -> None:
    blank = _blank(1, "it belongs to the user 0, and you are 1000")
    read = samples(text_of(families_of(look(blank))), classic=False)
    names = {name for name, _ in read if name.startswith("tender_vm")}
    assert names == {
        "tender_vm_info", "tender_vm_state", "tender_vm_start_time_seconds", "tender_vm_cpu_seconds_total",
        "tender_vm_memory_resident_bytes",
    }  # fmt: skip
    assert read["tender_exporter_unreadable_guests", ()] == 1


def test_a_host_without_guests_has_metrics_of_the_exporter() -> None:
    read = samples(text_of(families_of(look())), classic=False)
    assert {name for name, _ in read} == {
        "tender_exporter_info", "tender_exporter_guests", "tender_exporter_unreadable_guests",
        "tender_exporter_look_seconds", "tender_exporter_looks_total",
    }  # fmt: skip


# ---- the server


class Served:
    """An exporter on a thread; each text says how often one was asked for."""

    def __init__(self, listening: socket.socket) -> None:
        self.address = listening.getsockname()
        self.asked = 0
        self._ended = False
        self._exporter = exporter.Exporter(listening, self._text)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _text(self, *, classic: bool) -> str:
        self.asked += 1
        return f"classic {classic}\n" + "x" * LONG * (self.asked == 99)

    def _serve(self) -> None:
        while not self._ended:
            self._exporter.step()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=LIMIT_S)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as it:
            it.sendall(request)
            return answer(it)

    def end(self) -> None:
        self._ended = True
        with self.connect():
            pass
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def answer(it: socket.socket) -> bytes:
    found = b""
    try:
        while more := it.recv(1 << 16):
            found += more
    except ConnectionResetError:
        pass
    return found


@pytest.fixture
def served() -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Served(listening)
        try:
            yield made
        finally:
            made.end()


@pytest.mark.parametrize(
    ("request_text", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"classic True\n"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200, b"classic True\n"),
        (
            b"GET /metrics HTTP/1.1\r\naccept: text/html, application/OpenMetrics-text;version=1.0.0\r\n\r\n",
            200,
            b"classic False\n",
        ),
        (b"GET /metrics HTTP/1.1\n\n", 200, b"classic True\n"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200, b""),
        (b"GET / HTTP/1.1\r\n\r\n", 200, b"Tender's guests of this host: /metrics\n"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404, b"Tender's guests of this host: /metrics\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405, b"GET /metrics\n"),
        (b"GET /metrics\r\n\r\n", 400, b"a request of HTTP/1.1 is needed\n"),
        (b"\r\n\r\n", 400, b"a request of HTTP/1.1 is needed\n"),
        (b"\xff\0 \x80 HTTP/1.1\r\n\r\n", 405, b"GET /metrics\n"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * exporter.REQUEST_MAX, 431, b"too large\n"),
    ],
)
def test_requests_are_answered(request_text: bytes, status: int, body: bytes, served: Served) -> None:
    head, _, said = served.ask(request_text).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert said == body
    if body:
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head + b"\r\n"
    assert b"\r\nConnection: close" in head


def test_a_request_that_comes_in_pieces_is_answered(served: Served) -> None:
    with served.connect() as it:
        for piece in (b"GET /met", b"rics HTTP/1.1\r", b"\n\r", b"\n"):
            it.sendall(piece)
        assert answer(it).endswith(b"classic True\n")


def test_clients_that_say_nothing_are_closed_and_hold_up_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.2)
    idle = [served.connect() for _ in range(3)]
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"classic True\n")
    for it in idle:
        assert answer(it) == b""
        it.close()


def test_the_oldest_of_too_many_clients_is_closed(served: Served) -> None:
    idle = [served.connect() for _ in range(exporter.CLIENTS_MAX + 8)]
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"classic True\n")
    for it in idle[:9]:
        assert answer(it) == b""
    for it in idle:
        it.close()


def test_a_client_that_does_not_read_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.2)
    served.asked = 98
    with served.connect() as it:
        it.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        limit = time.monotonic() + LIMIT_S
        while served.asked < 99 or served._exporter._clients:
            assert time.monotonic() < limit
        assert len(answer(it)) < LONG
    assert served.ask(b"GET / HTTP/1.1\r\n\r\n")


def test_however_many_ask_guests_are_looked_at_once_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("tender.watch.exporter.time.monotonic", lambda: clock[0])
    looking = exporter.Looking()
    looks: list[float] = []

    def seen() -> list[RunningGuest]:
        looks.append(clock[0])
        return []

    monkeypatch.setattr(looking._watch, "look", seen)
    for _ in range(50):
        looking.text(classic=False)
        looking.text(classic=True)
        clock[0] += 0.1
    assert len(looks) == 5


# ---- places and files


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nowhere", "--listen=nowhere: it is neither HOST:PORT nor a path with a slash"),
        ("127.0.0.1:99999", "--listen=127.0.0.1:99999: "),
        ("192.0.2.1:1", "--listen=192.0.2.1:1: "),
        ("/no/such/directory/x", "--listen=/no/such/directory/x: No such file or directory"),
        ("./" + "x" * 200, "--listen=./" + "x" * 200 + ": "),
        ("/tmp/tender-\x1b", None),
    ],
)
def test_a_place_that_cannot_be_used_is_named(place: str, why: str | None) -> None:
    if why is None:
        with metrics.listening(place) as (_, shown):
            assert shown.isprintable()
        return
    with pytest.raises(Exception, match=re.escape(why)) as refused:
        with metrics.listening(place):
            pass
    assert type(refused.value).__name__ == "ConfigError"


def test_a_port_without_a_host_is_of_this_host_only() -> None:
    with metrics.listening(":0") as (it, shown):
        assert it.getsockname()[0] == "127.0.0.1"
        assert shown == f"http://127.0.0.1:{it.getsockname()[1]}/metrics"


def test_a_socket_is_its_users_alone_and_goes_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "tender.sock"
    with metrics.listening(str(path)):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Exception, match="Address already in use"), metrics.listening(str(path)):
            pass
        assert path.exists()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with metrics.listening(str(path)):
        pass
    path.write_text("a file")
    with pytest.raises(Exception, match="Address already in use"), metrics.listening(str(path)):
        pass
    assert path.read_text() == "a file"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "tender.prom"
    for data in (b"one\n", b"two\n"):
        metrics._write(str(path), data)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o644
    assert [it.name for it in tmp_path.iterdir()] == ["tender.prom"]
    for wrong in (str(tmp_path), "/dev/null", str(tmp_path / "no" / "file"), "a\0b"):
        with pytest.raises(Exception) as refused:
            metrics._write(wrong, b"x")
        assert type(refused.value).__name__ == "ConfigError"
    assert [it.name for it in tmp_path.iterdir()] == ["tender.prom"]


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "one of --once, --textfile=FILE and --listen=HOST:PORT|PATH is needed"),
        (["--once", "--listen=:0"], "one of --once, --textfile=FILE and --listen=HOST:PORT|PATH is needed"),
        (["--once", "--interval=5"], "--interval belongs to --textfile"),
        (["--once", "x"], "`x' is one word too many"),
        (["--textfile=/no/such/directory/x"], "/no/such/directory/x: No such file or directory"),
    ],
)
def test_wrong_words_are_named(argv: list[str], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert metrics.main(argv) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capfd.readouterr().err.startswith(f"tender: metrics: {why}\n")


# ---- the dashboard


def test_the_dashboard_uses_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    read = samples(text_of(families_of(look(guest(), growths={guest().id: GROWTH}))), classic=False)
    names = {name for name, _ in read}
    labels = {key for _, pairs in read for key, _ in pairs} | {"instance"}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 15
    for expression in expressions:
        used = set(re.findall(r"\btender_\w+", expression))
        assert used and used <= names, expression
        assert set(re.findall(r"[{,](\w+)=", expression)) <= labels, expression
        for by in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(by.split(", ")) <= labels
    assert {it["name"] for it in dashboard["templating"]["list"]} == {"datasource", "instance", "vm"}


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= 24
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
