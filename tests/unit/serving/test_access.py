"""Who may ask: tokens, addresses, pages of other sites, other hosts' names."""

import httpx
import openai
import pytest

from ma2mba.errors import UserError
from ma2mba.serving.auth import read_tokens
from ma2mba.serving.server import warn_if_readable
from ma2mba.serving.settings import Settings, is_loopback
from tests.unit.serving.fakes import FakeEngine, FakeLibrary, make_app, running

ANNA, BEN = "a" * 32, "b" * 32
HELLO = {"model": "toy", "messages": [{"role": "user", "content": "?"}]}


@pytest.fixture
def guarded(tmp_path):
    """The URL of a server with two tokens, and its engine."""
    file, engine = tmp_path / "tokens", FakeEngine()
    file.write_text(f"# clients\nanna {ANNA}\n\n{BEN}\n")
    with running(make_app(engine, FakeLibrary(), tmp_path, token_file=file)) as url:
        yield url, engine


@pytest.fixture
def local(tmp_path):
    """The URL of a server for this machine."""
    with running(make_app(FakeEngine(), FakeLibrary(), tmp_path)) as url:
        yield url


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/toy"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/a"),
    ("GET", "/v1/videos/a/events"),
    ("DELETE", "/v1/videos/a"),
    ("GET", "/metrics"),
)


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), bearer(ANNA[:-1]), bearer(ANNA + "a"), {"Authorization": "Bearer"}]
)
def test_without_a_known_token_nothing_is_served(guarded, headers):
    for method, path in ROUTES:
        answer = httpx.request(method, guarded[0] + path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error"), path
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_names_its_client(guarded):
    url, engine = guarded
    for token in (ANNA, BEN):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=token)
        client.chat.completions.create(**HELLO)
    assert [answering.question.client for answering in engine.asked] == ["token:anna", "token:line 4"]


def test_health_needs_no_token(guarded):
    assert httpx.get(f"{guarded[0]}/health").json() == {"status": "ok"}


def test_no_client_finds_the_video_of_another(guarded):
    url, _ = guarded
    video = httpx.post(f"{url}/v1/videos", content=b"a", headers=bearer(ANNA)).json()
    place = f"{url}/v1/videos/{video['id']}"
    assert httpx.get(place, headers=bearer(ANNA)).status_code == 200
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        assert httpx.request(method, place + path, headers=bearer(BEN)).status_code == 404
    assert httpx.get(f"{url}/v1/videos", headers=bearer(BEN)).json()["data"] == []
    assert httpx.get(place, headers=bearer(ANNA)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "served"),
    [
        ({}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "http://127.0.0.1.evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "evil.example:80"}, False),
        ({"Host": "localhost"}, True),
        ({"Host": "[::1]:8000"}, True),
    ],
)
def test_pages_of_other_sites_reach_nothing(local, headers, served):
    answer = httpx.get(f"{local}/v1/models", headers=headers)
    assert answer.status_code == (200 if served else 403)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_servers_own_page_reaches_it(local):
    assert httpx.get(f"{local}/v1/models", headers={"Origin": local}).status_code == 200


def test_there_is_no_cors(guarded):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{guarded[0]}/v1/chat/completions", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_with_tokens_a_proxys_host_name_is_served(guarded):
    headers = bearer(ANNA) | {"Host": "ask.example", "Origin": "https://ask.example"}
    assert httpx.get(f"{guarded[0]}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_machines_need_a_token(tmp_path, host):
    with pytest.raises(UserError, match="--token-file"):
        Settings(model=tmp_path, host=host)
    Settings(model=tmp_path, host=host, no_auth=True)
    Settings(model=tmp_path, host=host, token_file=tmp_path / "tokens")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "[::1]"])
def test_this_machine_needs_none(tmp_path, host):
    assert is_loopback(host)
    Settings(model=tmp_path, host=host)


@pytest.mark.parametrize(
    "value", ["https://example.org", "example.org/a", "exa mple", "", "*", "*.example.org", "a:80"]
)
def test_a_domain_is_a_host_name(tmp_path, value):
    with pytest.raises(UserError, match="--allow-domain"):
        Settings(model=tmp_path, domains=(value,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no token"),
        ("# none\n", "has no token"),
        ("short\n", ":1: this token is too short"),
        (f"{ANNA}\nanna {ANNA}\n", ":2: repeats"),
        (f"anna {ANNA}\nanna {BEN}\n", ":2: repeats"),
        (f"anna {ANNA} x\n", "3 words"),
        ("ä" * 32, "ASCII"),
    ],
)
def test_a_broken_token_file_is_refused(tmp_path, text, says):
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_tokens(file)


def test_a_missing_token_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        read_tokens(tmp_path / "nothing")


def test_a_token_file_that_others_can_read_is_told(tmp_path, caplog):
    file = tmp_path / "tokens"
    file.touch()
    for mode, told in ((0o600, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        caplog.clear()
        warn_if_readable(file)
        assert ("chmod 600" in caplog.text) == told
