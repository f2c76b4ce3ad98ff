"""Images behind an address: only listed hosts over https, only public addresses, the address that was checked, within bounds."""

import asyncio
import io
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from reins_serve.serving import remote_images
from reins_serve.serving.config import Limits, ModelConfig
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.remote_images import fetch, public
from reins_serve.serving.replica import VideoReplica
from tests.certificates import issue
from tests.serving.local import application, error, finished, served

HOST = "images.example"
LIMITS = Limits(max_image_bytes=5000, image_timeout_s=20)


@dataclass
class Site:
    """A web server with a certificate for `images.example`: what it answers by path, and what it was asked."""

    port: int
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return f"{HOST}:{self.port}"

    def url(self, path: str) -> str:
        return f"https://{self.host}{path}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The web server on 127.0.0.1, to which HOST resolves, and which counts as public while the test runs."""
    made = Site(0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers["Host"]))
            if self.path == "/silent":
                made.silent.wait()
                return
            status, headers, body = made.answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    issued, chain = issue(HOST), tmp_path / "certificate.pem"
    chain.write_bytes(issued.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, issued.write_key(tmp_path / "key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def resolve(host: str, port: int) -> list[str]:
        assert host in (HOST, "other.example")
        return ["127.0.0.1"]

    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    monkeypatch.setattr(remote_images, "_resolve", resolve)
    monkeypatch.setattr(remote_images, "public", lambda address: address == "127.0.0.1")
    yield made
    made.silent.set()
    server.shutdown()
    server.server_close()
    thread.join()


def got(site: Site, path: str, hosts: tuple[str, ...] | None = None, limits: Limits = LIMITS) -> bytes:
    return asyncio.run(fetch(site.url(path), (site.host,) if hosts is None else hosts, limits))


def test_a_listed_host_is_asked_by_its_name_at_the_address_that_was_checked(site: Site) -> None:
    site.answers["/a.png?v=1"] = (200, {}, b"the picture")
    assert got(site, "/a.png?v=1") == b"the picture"
    assert site.asked == [("/a.png?v=1", site.host)]


def test_redirects_may_lead_to_listed_hosts_only(site: Site) -> None:
    site.answers["/end"] = (200, {}, b"the picture")
    site.answers["/here"] = (302, {"Location": "/end"}, b"")
    assert got(site, "/here") == b"the picture"
    for number, away in enumerate(
        (
            f"https://other.example:{site.port}/end",
            f"http://{site.host}/end",
            "https://127.0.0.1/end",
            "file:///etc/hostname",
        )
    ):
        site.answers[f"/{number}"] = (301, {"Location": away}, b"")
        before = len(site.asked)
        with pytest.raises(RequestError, match="could not be fetched"):
            got(site, f"/{number}")
        assert len(site.asked) == before + 1
    site.answers["/round"] = (307, {"Location": "/round"}, b"")
    with pytest.raises(RequestError, match="could not be fetched"):
        got(site, "/round")


def test_a_certificate_for_another_name_is_not_accepted(site: Site) -> None:
    address = f"https://other.example:{site.port}/a.png"
    with pytest.raises(RequestError, match="could not be fetched"):
        asyncio.run(fetch(address, (f"other.example:{site.port}",), LIMITS))
    assert site.asked == []


def test_too_much_too_slow_and_not_found_are_refused(site: Site) -> None:
    site.answers["/large"] = (200, {}, bytes(5001))
    with pytest.raises(RequestError) as refusal:
        got(site, "/large")
    assert refusal.value.code == "payload_too_large"
    site.answers["/none"] = (404, {}, b"")
    for path, limits in (("/none", LIMITS), ("/silent", LIMITS.model_copy(update={"image_timeout_s": 0.2}))):
        with pytest.raises(RequestError, match="could not be fetched") as refusal:
            got(site, path, limits=limits)
        assert (refusal.value.code, refusal.value.param) == ("invalid_value", "input_reference")


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("https://other.example/a.png", (HOST,)),
        (f"https://{HOST}:8443/a.png", (HOST,)),
        (f"http://{HOST}/a.png", (HOST,)),
        (f"https://user:word@{HOST}/a.png", (HOST,)),
        (f"https://{HOST}.other.example/a.png", (HOST,)),
        (f"https://{HOST}/a.png", ()),
        (f"https://{HOST}\n/a.png", (HOST,)),
    ],
)
def test_what_is_not_listed_is_not_even_looked_up(
    address: str, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_images, "_resolve", lambda *a: pytest.fail("looked up"))
    with pytest.raises(RequestError, match="no others"):
        asyncio.run(fetch(address, hosts, LIMITS))


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], []])
def test_a_name_that_leads_inside_is_not_connected_to(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return found

    monkeypatch.setattr(remote_images, "_resolve", resolve)
    monkeypatch.setattr("httpx.AsyncClient.send", lambda *a, **k: pytest.fail("connected"))
    with pytest.raises(RequestError, match="could not be fetched"):
        asyncio.run(fetch(f"https://{HOST}/a.png", (HOST,), LIMITS))


def test_the_systems_resolver_is_asked_and_its_private_answer_refused() -> None:
    with pytest.raises(RequestError, match="could not be fetched"):
        asyncio.run(fetch("https://localhost/a.png", ("localhost",), LIMITS))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True), ("2606:4700::1111", True), ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::", False),
        ("::1", False), ("fe80::1", False), ("fd00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False),
        ("2001:0:0:0:0:0:f5ff:fffe", False),
    ],
)  # fmt: skip
def test_only_addresses_out_in_the_internet_are_public(address: str, expected: bool) -> None:
    assert public(address) is expected


def test_over_http_a_listed_image_becomes_a_clip(site: Site, image_model: ModelConfig, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    site.answers["/a.png"] = (200, {"Content-Type": "image/png"}, buffer.getvalue())
    config = application(image_model, tmp_path / "clips", image_hosts=[site.host])
    with served(VideoReplica(image_model), config) as client:
        body = {"prompt": "a clip", "input_reference": {"image_url": site.url("/a.png")}}
        assert finished(client, client.post("/v1/videos", json=body).json())["status"] == "completed"
        body["input_reference"] = {"image_url": "https://elsewhere.example/a.png"}
        assert error(client.post("/v1/videos", json=body)) == (400, "invalid_value", "input_reference")
    assert len(site.asked) == 1
