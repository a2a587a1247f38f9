"""The web page: its answers equal the model's, its mistakes are told, and a real browser shows both swaps."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import demo
from dgnet_fast.config import ConfigError
from dgnet_fast.data import denormalize, normalize
from dgnet_fast.data.pictures import open_pictures
from dgnet_fast.web import protection
from dgnet_fast.web.protection import is_allowed, names_of
from dgnet_fast.web.server import Demo, create_app, data_url
from tests.tiny_run import fails, tiny_run

SIZE = 40, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model, path = tiny_run(tmp_path_factory.mktemp("demo") / "run")
    gallery = open_pictures("synthetic:gallery", model.config).choose(range(12))
    return Demo(model, gallery, nearest=2), path


@pytest.fixture
def client(made):
    pytest.importorskip("flask")
    return create_app(made[0], "<run>, step 7").test_client()


def png(picture):
    data = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(data, "PNG")
    return data.getvalue()


def shown(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy()).permute(2, 0, 1)


def swaps_of(model, pictures):
    return denormalize(model.swap(normalize(pictures), normalize(pictures.flip(0))))


def test_answer_equals_the_model(made, client):
    pictures = made[0].gallery.choose([0, 7]).decode(*SIZE)
    files = {name: (io.BytesIO(png(x)), "x.png") for name, x in zip("ab", pictures, strict=True)}
    answer = client.post("/swap", data=files).get_json()
    for one, wanted in zip(answer["pictures"], swaps_of(made[0].model, pictures), strict=True):
        assert int((shown(one["picture"]).int() - wanted.int()).abs().max()) <= 1
    assert [one["caption"] for one in answer["pictures"]][0] == "appearance of A, structure of B"
    for group, picture in zip(answer["nearest"], pictures, strict=True):
        first = group["people"][0]
        assert shown(first["picture"]).equal(picture)  # the picture itself is in the gallery
        assert first["caption"].endswith(", 1.00") and len(group["people"]) == 2


def test_nearest_are_different_people_in_order(made):
    found = made[0].nearest(made[0].gallery.choose([3]).decode(*SIZE)[0])
    assert found[0] == (3, pytest.approx(1, abs=1e-5)) and found[0][1] >= found[1][1]
    people = made[0].gallery.people
    assert people[found[0][0]] != people[found[1][0]]


def test_page_escapes_its_title_and_loads_nothing(client):
    page = client.get("/").get_data(as_text=True)
    assert "&lt;run&gt;, step 7" in page and "<run>" not in page
    assert "http://" not in page and "https://" not in page


def test_mistakes_are_told(client):
    picture = png(torch.zeros(3, *SIZE, dtype=torch.uint8))
    answer = client.post("/swap", data={"a": (io.BytesIO(picture), "a.png")})
    assert (answer.status_code, answer.get_json()) == (400, {"error": "picture B is missing"})
    files = {"a": (io.BytesIO(picture), "a.png"), "b": (io.BytesIO(b"text"), "b.png")}
    answer = client.post("/swap", data=files)
    assert answer.status_code == 400 and "cannot read image B" in answer.get_json()["error"]
    files = {"a": (io.BytesIO(picture), "a.png"), "b": (io.BytesIO(b"0" * (33 * 2**20)), "b.png")}
    answer = client.post("/swap", data=files)
    assert answer.status_code == 413 and "larger than 32 MB" in answer.get_json()["error"]


@pytest.mark.parametrize(
    "host, status", [("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[::1]:80", 200)]
)
def test_5_only_the_names_of_this_machine_are_answered(client, host, status):
    assert client.get("/", headers={"Host": host}).status_code == status
    answer = client.post("/swap", headers={"Host": "localhost", "Origin": "http://evil.example"})
    assert answer.status_code == 403 and "only from this page" in answer.get_json()["error"]


@pytest.mark.parametrize(
    "bound, host, allowed",
    [("192.168.0.3", "192.168.0.3:8000", True), ("192.168.0.3", "localhost", False), ("0.0.0.0", "10.1.2.3", True),
     ("0.0.0.0", "evil.example", False), ("localhost", "127.0.0.1", True), ("gpu-1", "GPU-1:80", True)],
)  # fmt: skip
def test_5_the_names_of_an_address(bound, host, allowed):
    assert is_allowed(host, names_of(bound)) == allowed


def test_5_what_is_too_much_is_said_as_it_is(client):
    data = io.BytesIO()
    Image.new("1", (6000, 6000)).save(data, "PNG")
    picture = png(torch.zeros(3, *SIZE, dtype=torch.uint8))
    files = {"a": (io.BytesIO(picture), "a.png"), "b": (io.BytesIO(data.getvalue()), "b.png")}
    answer = client.post("/swap", data=files)
    assert answer.status_code == 400
    assert answer.get_json()["error"].endswith("B: it has 6000x6000 pixels; allowed: at most 25 million")
    files = {f"p{k}": (io.BytesIO(b"x"), "x") for k in range(50)}
    answer = client.post("/swap", data=files)
    assert answer.status_code == 413 and "more parts than the pictures A and B" in answer.get_json()["error"]


def test_5_silent_clients_are_closed(made, monkeypatch):
    pytest.importorskip("flask")
    monkeypatch.setattr(protection, "SILENCE", 0.3)
    monkeypatch.setattr(protection, "DEADLINE", 0.6)
    server = protection.make_server("127.0.0.1", 0, create_app(made[0], "tiny"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        silent, slow = (
            socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(2)
        )
        slow.sendall(b"POST /swap HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n")
        assert silent.recv(10) == b""
        while slow.recv(4096):  # an error page at the most
            pass
        silent.close()
        slow.close()
        with pytest.raises(ConfigError, match="in use or not allowed"):
            protection.check_free("127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        thread.join()
    with pytest.raises(ConfigError, match="no.such.host.* is no address"):
        protection.check_free("no.such.host.invalid", 0)


def test_without_a_gallery_there_are_swaps_alone(made):
    alone = Demo(made[0].model)
    picture = png(torch.zeros(3, 80, 30, dtype=torch.uint8))
    answer = alone.answer({"a": picture, "b": picture})
    assert answer["nearest"] == [] and shown(answer["pictures"][0]["picture"]).shape == (3, *SIZE)


def test_mistakes_of_the_command(made, tmp_path, capsys):
    assert "--port is 70000; allowed" in fails(capsys, demo.main, [made[1], "--port", 70000])
    assert "no such checkpoint: nowhere" in fails(capsys, demo.main, ["nowhere"])
    (tmp_path / "empty").mkdir()
    words = [made[1], "--gallery", tmp_path / "empty"]
    assert "no images in" in fails(capsys, demo.main, words)


def test_without_flask(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ValueError, match="needs Flask, which is not installed"):
        create_app(made[0], "run")


@pytest.fixture
def address(made):
    """The page served on a free port of this machine."""
    pytest.importorskip("flask")
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, create_app(made[0], "tiny"), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_in_a_browser(made, address, browser, tmp_path):
    pictures = made[0].gallery.choose([1, 9]).decode(*SIZE)
    for name, picture in zip("ab", pictures, strict=True):
        (tmp_path / f"{name}.png").write_bytes(png(picture))
    page = browser.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.set_input_files("#file-a", tmp_path / "a.png")
    drop = """([name, text]) => {
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.querySelector(`.drop[data-name=${name}]`).dispatchEvent(
            new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })); }"""
    page.evaluate(drop, ["b", base64.b64encode(png(pictures[1])).decode()])
    page.wait_for_selector("#swaps figure:nth-child(2) img")
    made_there = page.eval_on_selector_all("#swaps img", "list => list.map(one => one.src)")
    wanted = swaps_of(made[0].model, pictures)
    for url, picture in zip(made_there, wanted, strict=True):
        assert int((shown(url).int() - picture.int()).abs().max()) <= 1
    nearest = page.eval_on_selector_all("#nearest img", "list => list.map(one => one.src)")
    assert nearest[0] == data_url(pictures[0]) and len(nearest) == 4
    widths = page.eval_on_selector_all("img", "list => list.map(one => one.naturalWidth)")
    assert widths == [24] * 8
    assert page.inner_text("#message").startswith("Done in ") and not problems
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page.set_input_files("#file-b", tmp_path / "bad.png")
    page.wait_for_selector("#message.error")
    assert "cannot read image B" in page.inner_text("#message")
    assert page.is_hidden("#results")
