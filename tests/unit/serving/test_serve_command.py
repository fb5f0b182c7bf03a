"""`ma2mba serve` with a small model, as a process of its own, asked with OpenAI's client."""

import base64
import signal
from fractions import Fraction
from pathlib import Path

import httpx
import openai
import pytest

from ma2mba.inference.chat import VideoChat
from tests.unit.serving.fakes import wait_for
from tests.unit.serving.process import STARTING, serving, start
from tests.unit.video.numbered_video import write

pytestmark = pytest.mark.timeout(4 * 400)
QUESTION = "Which symbol appeared?"
WRITING = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with a video of 5 s and a video of 40 s."""
    folder = tmp_path_factory.mktemp("media")
    for name, numbers in (("short.mp4", range(5)), ("long.mp4", range(1000, 1040))):
        write(folder / name, numbers, Fraction(1))
    return folder


@pytest.fixture(scope="module")
def expected(model, tokenizer, root):
    """What VideoChat answers about each video, with the log-probabilities: the words are the same for every video."""
    said = {}
    for path in root.iterdir():
        chat = VideoChat(model, tokenizer)
        chat.watch(path, hashed=False)
        said[path.name] = chat.ask(QUESTION, logprobs=True, **WRITING)
    first, second = said.values()
    assert first.logprobs != pytest.approx(second.logprobs, abs=1e-4)
    return said


@pytest.fixture(scope="module")
def server(model_folder, root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    options = ("--name", "toy", "--media-root", root, "--cache", cache, "--dtype", "fp32", "--device", "cpu")
    with serving("--model", model_folder, *options) as server:
        server.cache = cache
        yield server


def about(url: str, **values) -> dict:
    """Return the arguments of a question about a video."""
    part = {"type": "video_url", "video_url": {"url": url}}
    return {
        "model": "toy",
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}],
        **(WRITING | values),
    }


def text(answer) -> str:
    return answer.choices[0].message.content


def same(answer, said) -> bool:
    """Return whether an answer has the text and the log-probabilities that VideoChat gives."""
    logprobs = [token.logprob for token in answer.choices[0].logprobs.content]
    return text(answer) == said.text and logprobs == pytest.approx(said.logprobs, abs=1e-5)


def test_a_video_by_file_by_data_and_by_id_has_the_answer_of_a_chat(server, root, expected):
    client = server.client()
    for name, said in expected.items():
        content = (root / name).read_bytes()
        assert same(client.chat.completions.create(**about(f"file://{root / name}", logprobs=True)), said)
        data = "data:video/mp4;base64," + base64.b64encode(content).decode()
        answer = client.chat.completions.create(**about(data, logprobs=True))
        assert same(answer, said)
        assert answer.usage.prompt_tokens_details.cached_tokens > 0
        video = httpx.post(f"{server.url}/v1/videos", files={"file": (name, content)}).json()
        assert same(client.chat.completions.create(**about(video["id"], logprobs=True)), said)


def test_a_stream_has_the_same_text(server, root, expected):
    asked = about(f"file://{root / 'short.mp4'}", stream=True, stream_options={"include_usage": True})
    chunks = list(server.client().chat.completions.create(**asked))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == expected["short.mp4"].text
    assert chunks[-1].usage.total_tokens > 0


def test_drawn_answers_repeat_with_their_seed(server, root):
    asked = about(f"file://{root / 'short.mp4'}", n=3, temperature=1.5, seed=7)
    first, second = (server.client().chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    assert len(first.model_extra["ma2mba"]["seeds"]) == 3


def test_log_probabilities_name_the_tokens(server, root):
    asked = about(f"file://{root / 'short.mp4'}", logprobs=True, top_logprobs=3)
    choice = server.client().chat.completions.create(**asked).choices[0]
    tokens = choice.logprobs.content
    assert tokens[0].token == choice.message.content.split()[0]
    assert len(tokens) == WRITING["max_tokens"]
    for token in tokens:
        assert token.top_logprobs[0].logprob == token.logprob  # at temperature 0
        assert len(token.top_logprobs) == 3


def test_a_conversation_goes_on(server, root, model, tokenizer):
    chat = VideoChat(model, tokenizer)
    chat.watch(root / "short.mp4", hashed=False)
    first = chat.ask(QUESTION, remember=True, **WRITING).text
    asked = about(f"file://{root / 'short.mp4'}")
    asked["messages"] += [{"role": "assistant", "content": first}, {"role": "user", "content": "How many scenes?"}]
    assert text(server.client().chat.completions.create(**asked)) == chat.ask("How many scenes?", **WRITING).text


def test_progress_is_told_until_the_video_is_read(server, root):
    content = (root / "long.mp4").read_bytes()
    video = httpx.post(f"{server.url}/v1/videos", content=content, headers={"Content-Type": "video/mp4"}).json()
    with httpx.stream("GET", f"{server.url}/v1/videos/{video['id']}/events", timeout=60) as events:
        last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
    assert '"status": "completed"' in last
    assert '"progress": 100' in last
    assert httpx.delete(f"{server.url}/v1/videos/{video['id']}").json()["deleted"]
    with pytest.raises(openai.NotFoundError):
        server.client().chat.completions.create(**about(video["id"]))


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:video/mp4;base64,AAAA", 415),
        ("file:///etc/passwd", 403),
        ("https://example.org/a.mp4", 403),
        ("video-unknown", 404),
    ],
)
def test_what_cannot_be_used_is_refused_in_openais_shape(server, url, status):
    with pytest.raises(openai.APIStatusError) as error:
        server.client().chat.completions.create(**about(url))
    assert error.value.status_code in (status, 400)
    assert error.value.body["message"]


def test_a_client_that_goes_away_leaves_its_place(server):
    asked = {"model": "toy", "messages": [{"role": "user", "content": "?"}], "max_tokens": 4096}
    asked |= {"temperature": 2, "stream": True}
    for _ in range(5):
        with server.client().chat.completions.create(**asked) as stream:
            next(stream)
    wait_for(lambda: "ma2mba_questions 0.0" in httpx.get(f"{server.url}/metrics").text)


def test_a_server_ends_gracefully_and_knows_its_videos_after_a_stop_and_after_a_kill(
    model_folder, root, expected, tmp_path
):
    options = ("--model", model_folder, "--name", "toy", "--cache", tmp_path, "--media-root", root, "--dtype", "fp32")
    cached = []

    def ask(server):
        answer = server.client().chat.completions.create(**about(f"file://{root / 'long.mp4'}", logprobs=True))
        assert same(answer, expected["long.mp4"])
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)

    with serving(*options) as server:
        ask(server)
        asked = {"model": "toy", "messages": [{"role": "user", "content": "?"}], "temperature": 2, "max_tokens": 300}
        stream = server.client().chat.completions.create(**asked, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")  # the answer ends
        assert server.process.wait(STARTING) == 0
    with serving(*options) as server:
        ask(server)
        server.process.kill()
    with serving(*options, "--host", "0.0.0.0", "--no-auth") as server:
        ask(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STARTING) == 0
    assert cached[0] == 0
    assert min(cached[1:]) > 0
    assert "--no-auth: everybody" in server.log
    assert "Traceback" not in server.log


def test_a_second_server_in_the_same_cache_is_refused(server, model_folder):
    result = start("--model", model_folder, "--cache", server.cache)
    assert (result.returncode, str(server.cache) in result.stderr, "Traceback" in result.stderr) == (2, True, False)
