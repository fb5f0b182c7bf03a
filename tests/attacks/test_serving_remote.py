"""The server fetches from allowed hosts and public addresses alone, within limits of size and time."""

import asyncio
import gzip
import time

import pytest

from ma2mba.serving import remote
from ma2mba.serving.addresses import address_problem
from ma2mba.serving.errors import Refused
from ma2mba.serving.remote import Fetcher
from tests.unit.serving.media import clip, data_url, files, run, settings, with_library
from tests.unit.serving.web import lead_to, moved, page, web


def fetch(fetcher: Fetcher, url: str) -> bytes:
    async def work() -> bytes:
        async with fetcher.open(url) as found:
            return b"".join([block async for block in found.blocks])

    return run(work())


def refused(fetcher: Fetcher, url: str) -> Refused:
    with pytest.raises(Refused) as caught:
        fetch(fetcher, url)
    return caught.value


@pytest.fixture
def served(tmp_path, monkeypatch):
    with web(tmp_path) as one:
        addresses = {"videos.example": ["127.0.0.1"], "other.example": ["127.0.0.1"], "evil.example": ["127.0.0.1"]}
        lead_to(monkeypatch, one, addresses)
        one.pages["/a.mp4"] = page(b"video")
        yield one


@pytest.fixture
def fetcher(served):
    return Fetcher(["videos.example"], context=served.trusted())


def test_an_allowed_host_is_fetched_from(served, fetcher):
    assert fetch(fetcher, "https://Videos.Example./a.mp4#t=3") == b"video"
    assert served.asked[0][:2] == ("videos.example", "/a.mp4")


def test_no_host_is_allowed_by_default(served):
    error = refused(Fetcher([], context=served.trusted()), "https://videos.example/a.mp4")
    assert (error.status, served.asked) == (403, [])


@pytest.mark.parametrize(
    "host",
    ["evil.example", "videos.example.evil.example", "sub.videos.example", "notvideos.example", "127.0.0.1", "[::1]"],
)
def test_other_hosts_are_refused(served, fetcher, host):
    assert refused(fetcher, f"https://{host}/a.mp4").code == "forbidden_host"
    assert served.asked == []


def test_a_leading_dot_allows_subdomains():
    fetcher = Fetcher([".videos.example"])
    assert fetcher.target("https://videos.example/").host == "videos.example"
    assert fetcher.target("https://a.b.videos.example/").host == "a.b.videos.example"
    with pytest.raises(Refused):
        fetcher.target("https://notvideos.example/")


@pytest.mark.parametrize(
    "url",
    [
        "http://videos.example/a.mp4",
        "https://user:word@videos.example/a.mp4",
        "https://videos.example@evil.example/a.mp4",
        "https://videos.example:22/a.mp4",
        "https://videos.example:8000/a.mp4",
    ],
)
def test_other_protocols_ports_and_logins_are_refused(url):
    with pytest.raises(Refused) as caught:
        Fetcher(["videos.example", "evil.example"]).target(url)
    assert caught.value.status == 403
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://videos.example\\@evil.example/",
        "https://videos.example/a\r\nHost: evil.example",
        "https://videos.example /",
        "https:///a.mp4",
        "https://videos.example:port/",
        "https://[::1/",
        "https://videos.example/" + "a" * 9000,
    ],
)
def test_malformed_urls_are_refused(url):
    with pytest.raises(Refused) as caught:
        Fetcher(["videos.example"]).target(url)
    assert caught.value.code == "invalid_url"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "192.88.99.1",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1%eth0",
        "ff02::1",
        "localhost",
    ],
)
def test_addresses_that_are_not_public_are_refused(address):
    assert address_problem(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are_allowed(address):
    assert address_problem(address) == ""


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.1", "10.0.0.1"], ["127.0.0.1", "::ffff:127.0.0.1"]])
def test_every_address_of_a_host_is_checked(served, fetcher, monkeypatch, addresses):
    lead_to(monkeypatch, served, {"videos.example": addresses})
    assert refused(fetcher, "https://videos.example/a.mp4").code == "forbidden_address"
    assert served.asked == []


def test_an_allowed_host_on_this_machine_is_refused():
    fetcher = Fetcher(["localhost", "127.0.0.1"], http=True)
    assert refused(fetcher, "http://localhost/a.mp4").code == "forbidden_address"
    assert refused(fetcher, "http://127.0.0.1/a.mp4").code == "forbidden_address"


def test_the_connection_goes_to_the_checked_address(served, fetcher, monkeypatch):
    """A name that is resolved again could lead elsewhere."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    monkeypatch.setattr(remote, "resolve", lambda host, port: asyncio.sleep(0, answers.pop(0)))
    connected = []
    connect = remote.httpcore.AnyIOBackend.connect_tcp

    async def spy(self, host, *arguments):
        connected.append(host)
        return await connect(self, host, *arguments)

    monkeypatch.setattr(remote.httpcore.AnyIOBackend, "connect_tcp", spy)
    assert fetch(fetcher, "https://videos.example/a.mp4") == b"video"
    assert connected == ["127.0.0.1"]
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("https://evil.example/a.mp4", "forbidden_host"),
        ("http://videos.example/a.mp4", "forbidden_url"),
        ("file:///etc/passwd", "forbidden_url"),
        ("https://videos.example:22/", "forbidden_url"),
        ("https://a:b@videos.example/a.mp4", "forbidden_url"),
        ("https://other.example/a.mp4", "forbidden_address"),
        ("/r", "unfetchable_url"),
    ],
)
def test_redirects_are_checked_again(served, monkeypatch, to, code):
    lead_to(monkeypatch, served, {"videos.example": ["127.0.0.1"], "other.example": ["10.0.0.1"]})
    served.pages["/r"] = moved(to)
    fetcher = Fetcher(["videos.example", "other.example"], context=served.trusted())
    assert refused(fetcher, "https://videos.example/r").code == code
    assert {path for _, path, _ in served.asked} == {"/r"}
    assert len(served.asked) <= 4


def test_allowed_redirects_are_followed(served):
    served.pages["/r"] = moved("https://other.example/s", 307)
    served.pages["/s"] = moved("a.mp4", 301)
    fetcher = Fetcher(["videos.example", "other.example"], context=served.trusted())
    assert fetch(fetcher, "https://videos.example/r") == b"video"


def test_the_certificate_must_be_the_hosts(served, monkeypatch):
    lead_to(monkeypatch, served, {"evil.example": ["127.0.0.1"]})
    error = refused(Fetcher(["evil.example"], context=served.trusted()), "https://evil.example/a.mp4")
    assert "certificate" in str(error).lower()
    assert served.asked == []


def test_proxies_of_the_environment_are_not_used(served, fetcher, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(fetcher, "https://videos.example/a.mp4") == b"video"


def test_compressed_content_is_refused(served, fetcher):
    served.pages["/z"] = page(gzip.compress(bytes(10**6)), Content_Encoding="gzip")
    assert "compressed" in str(refused(fetcher, "https://videos.example/z"))


def test_errors_of_the_other_server_are_told(served, fetcher):
    served.pages["/missing"] = lambda handler: handler.send_error(404)
    assert "status 404" in str(refused(fetcher, "https://videos.example/missing"))


def test_a_silent_server_is_given_up(served, fetcher, monkeypatch):
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.2)
    served.pages["/silent"] = lambda handler: time.sleep(2)
    assert "in time" in str(refused(fetcher, "https://videos.example/silent"))


def test_a_server_that_drips_is_given_up(served, fetcher, monkeypatch):
    monkeypatch.setattr(remote, "FETCH_SECONDS", 0.5)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    served.pages["/drip"] = drip
    assert "takes too long" in str(refused(fetcher, "https://videos.example/drip"))


@pytest.mark.parametrize("announced", [True, False])
def test_a_fetched_file_is_never_larger_than_allowed(served, tmp_path, announced):
    def large(handler):
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(bytes(10**6))
                sent.append(1)
        except OSError:
            pass

    sent: list[int] = []
    served.pages["/large"] = large
    chosen = settings(tmp_path, domains=("videos.example",), max_upload_gb=0.005)

    async def use(library):
        library._fetcher = Fetcher(chosen.domains, context=served.trusted())
        with pytest.raises(Refused) as caught:
            await library.fetch("https://videos.example/large", "video", "ann")
        assert caught.value.status == 413
        assert files(chosen.uploads) == []
        assert library.status()["media_bytes"] == 0

    with_library(chosen, use)
    assert len(sent) < 100


def test_a_fetched_video_is_fetched_once(served, tmp_path):
    content = clip(tmp_path / "a.mp4")
    served.pages["/clip.mp4"] = page(content)
    chosen = settings(tmp_path, domains=("videos.example",))

    async def use(library):
        library._fetcher = Fetcher(chosen.domains, context=served.trusted())
        first = await library.fetch("https://videos.example/clip.mp4", "video", "ann")
        assert await library.fetch("https://videos.example/clip.mp4", "video", "ann") == first
        assert await library.fetch(data_url(content), "video", "ann") == first
        assert len(served.asked) == 1
        kept = await library.keep("https://videos.example/clip.mp4", "ben")
        assert (kept.medium.path, kept.medium.name) == (first.path, "clip.mp4")

    with_library(chosen, use)
