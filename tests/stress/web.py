"""The demo's page: requests of other sites, huge pictures, damaged forms, and clients that say nothing."""

from __future__ import annotations

import http.client
import io
import random
import resource
import socket
import threading
import time
from pathlib import Path

from PIL import Image

from dgnet_fast.checkpoints.loading import load_generator
from dgnet_fast.web import protection
from dgnet_fast.web.server import Demo, create_app
from tests.stress.harness import BEYOND, Budget, Section, run
from tests.stress.jobs import Ground


def _png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, "PNG")
    return data.getvalue()


def probes(ground: Ground, budget: Budget, rng: random.Random) -> Section:
    """All of them in a process of their own, which runs the server."""
    section = Section("probes of the demo")
    report = ground.root / "probes.txt"
    result = run(lambda: _serve(ground.given / "run", report, budget, rng), timeout=300)
    lines = report.read_text().splitlines() if report.exists() else []
    for line in lines:
        section.count(line or None)
    if result.traceback or result.status:
        section.count(f"the server: status {result.status}: {result.text.strip()[-300:]}")
    return section


def _serve(path: Path, report: Path, budget: Budget, rng: random.Random) -> int:
    protection.SILENCE, protection.DEADLINE = 1, 2
    demo = Demo(load_generator(path)[0])
    server = protection.make_server("127.0.0.1", 0, create_app(demo, "tiny"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = "127.0.0.1", server.server_port
    problems: list[str] = []

    def expect(
        name: str, statuses: tuple[int, ...], method: str, place: str, body: bytes = b"", **headers: str
    ) -> None:
        connection = http.client.HTTPConnection(*address, timeout=30)
        sent = {"Host": f"127.0.0.1:{address[1]}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        try:
            connection.request(method, place, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            wrong = answer.status not in statuses or "Traceback" in text or answer.status == 500
            problems.append(f"{name}: {answer.status} {text[:100]}" if wrong else "")
        except (OSError, http.client.HTTPException) as error:
            problems.append("" if 0 in statuses else f"{name}: {error}")
        finally:
            connection.close()

    def form(parts: dict[str, bytes], boundary: str = "xx") -> bytes:
        made = b"".join(
            b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n'
            % (boundary.encode(), name.encode(), data)
            for name, data in parts.items()
        )
        return made + b"--%s--\r\n" % boundary.encode()

    kind = "multipart/form-data; boundary=xx"
    good = form({"a": _png((24, 40)), "b": _png((24, 40))})
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "127.0.0.2"):
        expect(f"Host {host!r}", (403, 400), "GET", "/", Host=host)
        expect(f"POST, Host {host!r}", (403, 400), "POST", "/swap", good, Host=host, Content_Type=kind)
    expect("another Origin", (403,), "POST", "/swap", good, Content_Type=kind, Origin="http://evil.example")
    expect("the page", (200,), "GET", "/")
    expect("two pictures", (200,), "POST", "/swap", good, Content_Type=kind)
    huge = form({"a": _png((13300, 13300), "1"), "b": _png((24, 40))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    several = [
        threading.Thread(
            target=expect,
            args=("a huge picture", (400, 503), "POST", "/swap", huge),
            kwargs={"Content_Type": kind},
        )
        for _ in range(4)
    ]
    for one in several:
        one.start()
    for one in several:
        one.join()
    beyond = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    problems.append(f"huge pictures took {beyond / 1e9:.1f} GB" if beyond > BEYOND else "")
    many = form({f"p{k}": b"x" for k in range(5000)})
    expect("5000 parts", (413,), "POST", "/swap", many, Content_Type=kind)
    begin = time.monotonic()
    slow = socket.create_connection(address)
    silent = [socket.create_connection(address) for _ in range(60)]
    for one in silent[::2]:
        one.sendall(b"POST /swap HTTP/1.1\r\nContent-Length: 1000\r\n")
    ended = False
    while time.monotonic() - begin < 8 and not ended:
        try:
            slow.sendall(b"G")
        except OSError:
            ended = True
        time.sleep(0.3)
    time.sleep(max(0.0, begin + 6 - time.monotonic()))
    problems.append("" if ended else "a client that sends one byte after another is served for ever")
    threads = threading.active_count()
    problems.append(f"{threads} threads are left to silent clients" if threads > 8 else "")
    for one in (*silent, slow):
        one.close()
    expect("the page after silent clients", (200,), "GET", "/")
    while budget.allows(len(problems)):
        body = bytearray(good)
        for _ in range(rng.randrange(1, 30)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        body = body[: rng.randrange(len(body) + 1)] if rng.random() < 0.3 else body
        expect("a damaged form", (200, 400, 413, 503, 0), "POST", "/swap", bytes(body), Content_Type=kind)
    report.write_text("\n".join(problems) + "\n")
    return 0
