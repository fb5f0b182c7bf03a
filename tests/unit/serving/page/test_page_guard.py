"""What the page lets through: its own events and results, and nothing else of Gradio."""

import json
import re

import httpx
import pytest

from ma2mba.serving.app import create_app
from ma2mba.serving.errors import Refused
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.page import tabs
from ma2mba.serving.page.events import Events
from ma2mba.serving.page.guard import clean_event
from ma2mba.serving.page.layout import build
from ma2mba.serving.page.media_type import media_type
from ma2mba.serving.settings import Settings
from tests.unit.serving.fakes import running
from tests.unit.serving.media import photo
from tests.unit.serving.page.paced import PacedEngine

TOKEN = "a-token-of-a-client-1"
EVENT = {"data": [], "fn_index": 0, "trigger_id": 0, "session_hash": "abcdefgh123", "event_data": None}
LET_THROUGH = re.compile(r"/(assets|static)/|/(theme\.css|favicon\.ico|manifest\.json)$|/gradio_api/queue/(join|data)$")


def visitor(page: str) -> httpx.Client:
    """Return a client that has opened the page."""
    client = httpx.Client(base_url=page, timeout=90)
    assert client.get("/").status_code == 200
    return client


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return photo(tmp_path_factory.mktemp("pictures") / "red.png")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Settings of a server that the tests of this file share."""
    folder = tmp_path_factory.mktemp("shared")
    return Settings(model=folder / "demo", cache=folder / "cache")


@pytest.fixture(scope="module")
def page(shared):
    with running(create_app(shared, PacedEngine(), MediaLibrary(shared))) as address:
        yield f"{address}/"


def upload(client: httpx.Client, content: bytes, name: str = "red.png") -> str:
    return client.post("page/videos", params={"name": name}, content=content).raise_for_status().json()["id"]


def gradio_routes() -> list[tuple[str, str]]:
    """Return method and path of every route that Gradio has."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Textbox()
    found, routes = set(), [("", route) for route in gr.routes.App.create_app(blocks).routes]
    while routes:
        prefix, route = routes.pop()
        if router := getattr(route, "original_router", None):
            routes += [(prefix + route.include_context.prefix, inner) for inner in router.routes]
        else:
            path = prefix + re.sub(r"\{[^}]+\}", "x", route.path)
            found |= {(method, path) for method in getattr(route, "methods", None) or ()}
    return sorted(found)


def test_gradio_has_routes_that_would_take_files():
    assert {("POST", "/gradio_api/upload"), ("GET", "/gradio_api/file=x")} <= set(gradio_routes())


def test_no_other_route_of_gradio_is_reached(page):
    client = visitor(page)
    refused = 0
    for method, path in gradio_routes():
        if path == "/" or LET_THROUGH.search(path):
            continue
        answer = client.request(method, path)
        assert answer.status_code == 404, (method, path, answer.text[:200])
        refused += 1
    assert refused > 40


@pytest.mark.parametrize(
    "path", ["/assets/%2e%2e/index.html", "/static/..%2f..%2f..%2froutes.py", "/assets//etc/passwd"]
)
def test_a_path_of_the_assets_does_not_lead_out(page, path):
    answer = visitor(page).get(path)
    assert answer.status_code in (403, 404), answer.text[:200]


def test_a_file_of_this_machine_is_not_served(page, shared, picture):
    client = visitor(page)
    upload(client, picture)
    path = next(shared.uploads.glob("*.png"))
    for name in (path, "/etc/passwd", "http://127.0.0.1/"):
        assert client.get(f"/gradio_api/file={name}").status_code == 404
    assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404


def test_an_event_needs_the_session_of_a_page(page):
    answer = httpx.post(f"{page}gradio_api/queue/join", json=EVENT, timeout=90)
    assert answer.status_code == 401
    assert "Load the page again" in answer.json()["error"]["message"]


def test_an_event_of_another_site_is_refused(page):
    client = visitor(page)
    for headers in (
        {"Origin": "https://example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in ("gradio_api/queue/join", "page/videos", "page/end", "page/login"):
            assert client.post(path, json=EVENT, headers=headers).status_code == 403, (headers, path)
    for headers in ({"Origin": page.rstrip("/")}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert client.post("gradio_api/queue/join", json=EVENT, headers=headers).status_code == 200, headers


def test_a_window_belongs_to_the_visitor_who_opened_it(page):
    first, second, event = visitor(page), visitor(page), EVENT | {"session_hash": "thefirst1"}
    assert first.post("gradio_api/queue/join", json=event).status_code == 200
    assert second.post("gradio_api/queue/join", json=event).status_code == 403
    assert second.get("gradio_api/queue/data", params={"session_hash": event["session_hash"]}).status_code == 403
    results = first.get("gradio_api/queue/data", params={"session_hash": event["session_hash"]})
    assert "process_completed" in results.text


def test_many_windows_follow_readings_at_once(engine, settings, picture, monkeypatch):
    """Gradio runs 40 events at once by default."""
    monkeypatch.setattr(tabs, "GRACE_SECONDS", 600)
    engine.rate = 0.001
    functions = build(settings, Events(engine, None, None)).fns
    follow = next(number for number, function in functions.items() if function.name == "progress")
    with running(create_app(settings, engine, MediaLibrary(settings))) as address:
        client = visitor(f"{address}/")
        id = upload(client, picture)
        for number in range(60):
            event = EVENT | {"data": [id], "fn_index": follow, "session_hash": f"window{number:03}"}
            assert client.post("gradio_api/queue/join", json=event).status_code == 200
        assert client.post("gradio_api/queue/join", json=EVENT).status_code == 200
        results = client.get("gradio_api/queue/data", params={"session_hash": EVENT["session_hash"]})
        assert "process_completed" in results.text


@pytest.mark.parametrize(
    "value",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        [{"url": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}}],
        ["text"],
        7,
    ],
)
def test_an_event_carries_only_text(page, value):
    event = EVENT | {"data": [value]}
    with pytest.raises(Refused):
        clean_event(json.dumps(event).encode(), {0: 1})
    assert visitor(page).post("gradio_api/queue/join", json=event).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b'{"data": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_event_is_refused(page, body):
    assert visitor(page).post("gradio_api/queue/join", content=body).status_code == 400


@pytest.mark.parametrize(
    "odd", [{"fn_index": -1}, {"fn_index": 10**9}, {"fn_index": True}, {"data": ["x"]}, {"fn_index": 1}]
)
def test_an_event_that_the_page_has_not_does_not_reach_gradio(page, odd, caplog):
    assert visitor(page).post("gradio_api/queue/join", json=EVENT | odd).status_code == 400
    assert "Traceback" not in caplog.text


def test_a_window_without_an_event_has_no_results(page, caplog):
    answer = visitor(page).get("gradio_api/queue/data", params={"session_hash": "neverseen1"})
    assert answer.status_code == 404
    assert "Traceback" not in caplog.text


def test_half_a_surrogate_pair_is_no_text(page):
    event = EVENT | {"fn_index": 1, "data": ["\ud83d"]}
    answer = visitor(page).post("gradio_api/queue/join", content=json.dumps(event))
    assert answer.status_code == 400


def test_a_long_event_is_refused(page):
    event = EVENT | {"data": ["x" * 300_000]}
    assert visitor(page).post("gradio_api/queue/join", json=event).status_code == 413


def test_an_event_loses_what_the_page_does_not_send():
    event = clean_event(
        json.dumps(EVENT | {"request": {"a": 1}, "event_data": {"path": "/x"}, "batched": True}).encode(), {0: 0}
    )
    assert event == EVENT


def test_the_cookie_is_a_secret_that_scripts_cannot_read(page):
    cookies = [httpx.get(page, timeout=90).headers["set-cookie"] for _ in range(3)]
    assert len(set(cookies)) == 3
    for cookie in cookies:
        assert re.match(r"ma2mba-page-8000=[\w-]{43};", cookie)
        assert {"HttpOnly", "SameSite=lax"} <= set(cookie.split("; "))


def test_other_sites_may_read_and_frame_nothing(page, picture):
    client = visitor(page)
    for path in ("/", "/theme.css", "/gradio_api/upload", f"page/videos/{upload(client, picture)}"):
        headers = client.get(path, headers={"Origin": page.rstrip("/")}).headers
        assert not [name for name in headers if name.startswith("access-control-")], path
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_the_page_names_no_other_host(page):
    client = visitor(page)
    text = client.get("/").text
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](https?:)?//""", text)
    assert loaded == []
    assert "fonts.g" not in text + client.get("/theme.css").text


def test_a_video_is_shown_to_its_visitor_alone(page, picture):
    first, second = visitor(page), visitor(page)
    address = f"page/videos/{upload(first, picture)}"
    answer = first.get(address, headers={"Range": "bytes=1-3"})
    assert (answer.status_code, answer.content) == (206, b"PNG")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert second.get(address).status_code == 404
    assert httpx.get(f"{page}{address}", timeout=90).status_code == 401


def test_a_name_is_no_path(page, picture, shared):
    client = visitor(page)
    for name in ("../../../x.png", "/etc/passwd", "a\x00b\n", "x" * 5000):
        upload(client, picture, name)
    assert len(list(shared.uploads.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x00\x00\x00 ftypisom", "video/mp4"),
        (b"\x1aE\xdf\xa3 matroska", "video/webm"),
        (b"RIFF1234WEBP", "image/webp"),
        (b"RIFF1234AVI ", "application/octet-stream"),
        (b"<script>alert(1)</script>", "application/octet-stream"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_a_type_comes_from_the_bytes_and_is_never_a_pages(tmp_path, content, kind):
    (tmp_path / "page.html").write_bytes(content)
    assert media_type(tmp_path / "page.html") == kind


def test_the_end_of_a_session_deletes_its_videos(page, shared, tmp_path):
    before, client = set(shared.uploads.iterdir()), visitor(page)
    id = upload(client, photo(tmp_path / "green.png", "green"))
    assert len(set(shared.uploads.iterdir()) - before) == 2
    assert client.post("page/end").status_code == 303
    assert set(shared.uploads.iterdir()) == before
    assert client.get(f"page/videos/{id}").status_code == 401


def test_a_visitor_finds_the_videos_after_a_restart(engine, settings, picture):
    client = httpx.Client(timeout=90)
    with running(create_app(settings, engine, MediaLibrary(settings))) as page:
        client.get(f"{page}/")
        address = client.post(f"{page}/page/videos", content=picture).json()["id"]
    with running(create_app(settings, engine, MediaLibrary(settings))) as page:
        other = httpx.Client(timeout=90, cookies={f"ma2mba-page-{settings.port}": "x" * 43})
        assert "x" * 43 not in other.get(f"{page}/").headers["set-cookie"]
        client.get(f"{page}/")
        assert client.get(f"{page}/page/videos/{address}").content == picture
        assert other.get(f"{page}/page/videos/{address}").status_code == 404


def test_a_token_is_asked_for_and_opens_the_page(engine, tmp_path, picture):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"anna {TOKEN}\n")
    settings = Settings(model=tmp_path / "demo", cache=tmp_path / "cache", token_file=tokens)
    with running(create_app(settings, engine, MediaLibrary(settings))) as page:
        client = httpx.Client(base_url=page, timeout=90)
        front = client.get("/")
        assert front.status_code == 401
        assert "set-cookie" not in front.headers
        assert 'name="token"' in front.text
        assert "gradio_config" not in front.text
        assert client.post("page/videos", content=b"video").status_code == 401
        assert client.post("gradio_api/queue/join", json=EVENT).status_code == 401
        wrong = client.post("page/login", data={"token": TOKEN[:-1]})
        assert wrong.status_code == 401
        assert "This token is unknown" in wrong.text
        assert client.post("page/login", data={"token": "x" * 5000}).status_code == 413
        right = client.post("page/login", data={"token": f" {TOKEN} "})
        assert (right.status_code, right.headers["location"]) == (303, "../")
        assert "gradio_config" in client.get("/").text
        upload(client, picture)
        assert TOKEN not in str(client.cookies)


def test_gradio_tells_nobody_that_it_runs(settings):
    blocks = build(settings, events=_NoEvents())
    assert blocks.analytics_enabled is False
    assert not any(function.api_visibility == "public" for function in blocks.fns.values())


class _NoEvents:
    def __getattr__(self, name):
        return lambda *values: None
