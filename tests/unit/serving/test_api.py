"""OpenAI's interface, with the official client, in front of an engine and a library that tests steer."""

import contextlib
import http.client
import json
import logging

import httpx
import openai
import pytest

from ma2mba.errors import UserError
from ma2mba.serving.api import stream
from ma2mba.serving.contract import Progress, Turn
from ma2mba.video.errors import MediaError
from tests.unit.serving.fakes import FakeEngine, FakeLibrary, make_app, running, wait_for

HELLO = [{"role": "user", "content": "What is shown?"}]


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def library():
    return FakeLibrary()


@pytest.fixture
def url(engine, library, tmp_path):
    with running(make_app(engine, library, tmp_path)) as url:
        yield url


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client, messages=HELLO, **values):
    return client.chat.completions.create(model="toy", messages=messages, **values)


def test_the_client_asks(client, engine, library):
    video = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, video, {"type": "text", "text": "two?"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]},
    ]
    answer = ask(client, messages, seed=-1, temperature=0.5, stop="x", max_tokens=9, user="me")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("a cat", "stop")
    assert (answer.object, answer.model, answer.usage.total_tokens) == ("chat.completion", "toy", 9)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    question = engine.asked[0].question
    first, second, third = question.turns
    assert (first.role, first.parts[0].kind, first.parts[1]) == ("user", "video", "Be brief.\nOne\ntwo?")
    assert second == Turn("assistant", ("three",))
    assert (third.parts[0].kind, third.parts[1]) == ("image", "And this?")
    sampling = question.sampling
    assert (sampling.seed, sampling.temperature, sampling.stop, sampling.max_tokens) == (2**64 - 1, 0.5, ("x",), 9)
    assert question.client == "address:127.0.0.1"
    assert library.held == 0


def test_a_stream_has_the_pieces_the_usage_and_the_end(client, engine):
    chunks = list(
        ask(
            client,
            stream=True,
            stream_options={"include_usage": True},
            n=2,
            logprobs=True,
            top_logprobs=2,
            temperature=1,
        )
    )
    texts = ["", ""]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["a cat", "a cat"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"] * 2
    assert chunks[0].choices[0].delta.role == "assistant"
    named = [c.choices[0].logprobs.content[0] for c in chunks if c.choices and c.choices[0].logprobs]
    assert [(t.token, t.bytes, len(t.top_logprobs)) for t in named[::2]] == [
        ("a", [97], 2),
        (" cat", [32, 99, 97, 116], 2),
    ]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 4)
    assert chunks[-1].model_extra["ma2mba"]["seeds"] == [11, 12]
    assert "seeds" not in ask(client).model_extra["ma2mba"]  # nothing is drawn


def test_whole_answers_have_logprobs_and_numbers(client):
    answer = ask(client, n=2, logprobs=True, top_logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [token.token for token in answer.choices[1].logprobs.content] == ["a", " cat"]
    assert ask(client).choices[0].logprobs is None


def test_a_client_that_goes_away_cancels_its_answer(url, engine, library, client):
    engine.words, engine.pause = ["word"] * 10_000, 0.01
    video = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "?"}]}]
    with ask(client, messages, stream=True) as answer:
        next(answer)
        assert library.held == 1
    wait_for(lambda: engine.asked[0].cancelled)
    wait_for(lambda: library.held == 0)
    with pytest.raises(openai.APITimeoutError):
        ask(client, messages, timeout=0.5)
    wait_for(lambda: len(engine.asked) == 2 and engine.asked[1].cancelled)
    wait_for(lambda: library.held == 0)


def test_a_client_that_goes_away_before_the_first_word_cancels_its_answer(engine, client):
    engine.pause = 60
    for streamed in (False, True):
        with pytest.raises(openai.APITimeoutError):
            ask(client, stream=streamed, timeout=0.3)
    wait_for(lambda: [answering.cancelled for answering in engine.asked] == [True, True])


def test_a_slow_stream_begins_before_the_first_word_and_is_kept_alive(url, engine, monkeypatch):
    from ma2mba.serving.api import chat

    monkeypatch.setattr(chat, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.05)
    engine.pause, engine.error = 0.3, MediaError("/private/place", "is damaged", "Send another")
    body = {"model": "toy", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert (response.status_code, lines[0]) == (200, ": waiting")
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert (error["code"], "damaged" in error["message"], "/private" in error["message"]) == (
        "unusable_media",
        True,
        False,
    )


def test_an_error_in_a_stream_reaches_the_client(client, engine):
    engine.error = UserError("the answer broke. Ask again")
    answer = ask(client, stream=True)
    with pytest.raises(openai.APIError, match="the answer broke"):
        list(answer)


def test_errors_before_the_first_word_have_their_status(client, engine):
    engine.words, engine.error = [], MediaError("/private/place", "is damaged", "Send another")
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="is damaged") as error:
            ask(client, stream=streamed)
        assert error.value.code == "unusable_media"
        assert "/private" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "list of parts"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "no question"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "begin with"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "messages", "the last message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'tool'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
            "audio",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0].x", "not known"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a", "fps": 2}}]}]},
            "messages[0].content[0].video_url.fps",
            "not known",
        ),
        ({"temperature": -1}, "temperature", "out of range"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "out of range"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "too many"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stop": [1]}, "stop", "list of texts"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "does not support"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support"),
        ({"surprise": 1}, "surprise", "not known"),
    ],
)
def test_a_wrong_parameter_is_named(url, values, param, says):
    body = json.dumps({"model": "toy", "messages": HELLO} | values)
    answer = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert says in error["message"]


def test_what_changes_no_answer_is_accepted(client, engine):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}}
    ask(client, user="me", store=False, metadata={"a": "b"}, **neutral, extra_body={"top_k": -1, "tools": None})
    assert engine.asked[0].question.sampling.top_k == 0


def test_extensions_reach_the_engine(client, engine):
    ask(client, extra_body={"so_far": True, "top_k": 5, "min_p": 0.1, "repetition_stop": True})
    question = engine.asked[0].question
    assert (question.so_far, question.sampling.top_k, question.sampling.min_p) == (True, 5, 0.1)
    assert question.sampling.repetition_stop


def test_an_answer_is_no_longer_than_the_server_allows(client, engine):
    ask(client, max_completion_tokens=10**6)
    assert engine.asked[0].question.sampling.max_tokens == 4096


def test_statuses(url, client, engine, library):
    with pytest.raises(openai.NotFoundError, match="Use 'toy'"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    file = {"type": "video_url", "video_url": "file:///etc/passwd"}
    with pytest.raises(openai.PermissionDeniedError) as error:
        ask(client, [{"role": "user", "content": [file, {"type": "text", "text": "?"}]}])
    assert error.value.param == "messages[0].video_url"
    engine.full = True
    with pytest.raises(openai.RateLimitError) as busy:
        ask(client)
    assert (busy.value.response.headers["retry-after"], busy.value.code) == ("7", "busy")
    engine.full, engine.broken = False, "the GPU has no memory left. Restart the server"
    with pytest.raises(openai.InternalServerError, match="Restart") as broken:
        ask(client)
    assert broken.value.status_code == 503
    health = httpx.get(f"{url}/health")
    assert (health.status_code, "Restart" in health.json()["problem"]) == (503, True)
    engine.broken = ""
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"model": "\\ud800"}', {}, 400),
        (b'{"model": "a", "model": "b"}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Encoding": "gzip"}, 415),
    ],
)
def test_a_bad_body_is_refused(url, content, headers, status):
    headers = {"Content-Type": "application/json"} | headers
    answer = httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_body_that_says_it_is_large_is_refused_before_it_comes(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["code"]) == (413, "body_too_large")


def test_a_body_without_a_length_is_bounded(url):
    sent = 0

    def endless():
        nonlocal sent
        for sent in range(100):  # noqa: B007
            yield b" " * 1_000_000

    headers = {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.HTTPError):  # the answer may come while the client still sends
        assert httpx.post(f"{url}/v1/chat/completions", content=endless(), headers=headers).status_code == 413
    assert sent < 90


def test_a_fault_is_told_without_details(url, engine, caplog):
    engine.error = ZeroDivisionError("secret")
    engine.words = []
    with caplog.at_level(logging.CRITICAL):
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "toy", "messages": HELLO})
    assert (answer.status_code, answer.json()["error"]["code"], "secret" in answer.text) == (500, "fault", False)
    assert httpx.get(f"{url}/health").status_code == 200


def test_models(client):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "ma2mba"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/", "/v1/videos/unknown", "/v1/videos/unknown/events"])
def test_an_unknown_path_is_told_in_openais_shape(url, path):
    answer = httpx.get(url + path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_an_upload_is_read_followed_and_deleted(url, engine, library):
    content = bytes(range(256)) * 9000
    video = httpx.post(f"{url}/v1/videos", files={"file": ("../a b.mp4", content)}, data={"purpose": "vision"}).json()
    assert (video["status"], video["progress"], video["name"], video["bytes"]) == (
        "in_progress",
        25,
        "../a b.mp4",
        len(content),
    )
    assert library.contents[video["id"]] == content
    assert [v["id"] for v in httpx.get(f"{url}/v1/videos").json()["data"]] == [video["id"]]
    with httpx.stream("GET", f"{url}/v1/videos/{video['id']}/events") as events:
        lines = (line for line in events.iter_lines() if line)
        assert next(lines) == "event: progress"
        assert json.loads(next(lines).removeprefix("data: "))["reading"]["frames"] == 1
        engine.reads[0].progress = Progress("ready", 4, 4, 4, 4, 2.0)
        assert '"status": "completed"' in [*lines][-1]
    assert httpx.get(f"{url}/v1/videos/{video['id']}").json()["progress"] == 100
    wait_for(lambda: engine.reads[0].released)
    assert httpx.delete(f"{url}/v1/videos/{video['id']}").json()["deleted"]
    assert httpx.get(f"{url}/v1/videos/{video['id']}").status_code == 404
    assert len(engine.reads) == 1


def test_a_deleted_video_is_not_read_any_longer(url, engine):
    video = httpx.post(f"{url}/v1/videos", json={"url": "https://example.org/a.mp4"}).json()
    httpx.delete(f"{url}/v1/videos/{video['id']}")
    assert engine.reads[0].released


def test_a_file_alone_is_an_upload_too(url, library):
    video = httpx.post(f"{url}/v1/videos?name=a.mp4", content=b"bytes", headers={"Content-Type": "video/mp4"}).json()
    assert (video["name"], library.contents[video["id"]]) == ("a.mp4", b"bytes")


def test_an_upload_waits_when_the_queue_is_full(url, engine):
    engine.full = True
    answer = httpx.post(f"{url}/v1/videos", content=b"bytes")
    video = answer.json()
    assert answer.headers["location"] == f"/v1/videos/{video['id']}"
    assert video["status"] == "queued"
    engine.full = False
    assert httpx.get(f"{url}/v1/videos/{video['id']}").json()["status"] == "in_progress"


def test_a_failed_reading_says_why(url, engine):
    video = httpx.post(f"{url}/v1/videos", content=b"bytes").json()
    engine.reads[0].progress = Progress("failed", error="/private/place: is damaged. Send another")
    video = httpx.get(f"{url}/v1/videos/{video['id']}").json()
    assert (video["status"], video["error"]["message"]) == ("failed", "the file: is damaged. Send another")


@pytest.mark.parametrize(
    "content", [b"", b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nab']
)
def test_a_form_that_is_cut_off_is_refused(url, library, content):
    answer = httpx.post(
        f"{url}/v1/videos", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 400
    assert library.kept == {}


def test_an_upload_that_is_cut_off_is_not_kept(url, library):
    def some():
        yield b"bytes"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        httpx.post(f"{url}/v1/videos", content=some(), headers={"Content-Type": "video/mp4"})
    assert httpx.get(f"{url}/health").status_code == 200
    assert library.kept == {}


def test_metrics_count_by_route_and_hold_what_the_parts_say(url, client):
    ask(client)
    httpx.get(f"{url}/v1/nothing/here")
    text = httpx.get(f"{url}/metrics").text
    assert 'ma2mba_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert "nothing/here" not in text
    for line in ("ma2mba_places_taken 2.0", "ma2mba_frames_total 5.0", "ma2mba_uploads_bytes 3.0"):
        assert line in text
    assert "ma2mba_answer_tokens_total 2.0" in text


def test_the_parts_begin_and_end_with_the_server(engine, library, tmp_path):
    with running(make_app(engine, library, tmp_path)):
        assert library.started
    assert engine.stopped
    assert library.closed
