"""The page in a browser: upload, progress, questions, answers, two visitors, refusals, phone, keyboard, dark, light."""

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ma2mba.serving.app import create_app
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.page import tabs
from ma2mba.serving.settings import Settings
from tests.unit.serving.fakes import running, wait_for
from tests.unit.serving.page.clips import write_clip

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # a busy machine is slow
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def chromium():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} does not exist: install Debian's package chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "a block & a <b>field.webm")


@pytest.fixture
def visit(chromium, page):
    """Return a function that opens the page as a new visitor. No window may ask another host, or log an error."""
    contexts, hosts, errors = [], set(), []

    def opened(address=page, **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        window = context.new_page()
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.set_default_timeout(60_000)
        window.goto(address)
        return window

    yield opened
    for context in contexts:
        context.close()
    assert hosts <= {"127.0.0.1", None, ""}
    assert errors == []


def choose(window, path):
    window.locator(".picker").wait_for()
    window.get_by_label("Choose a video").set_input_files(path)


def show(window, path):
    """Choose a video and wait until it is shown."""
    choose(window, path)
    expect(window.locator(".mine option:checked")).to_have_text(path.name, timeout=120_000)  # a process checks it


def ask(window, question):
    window.get_by_label("Question").fill(question)
    window.get_by_label("Question").press("Enter")


def window_with_an_endless_answer(visit, engine, clip):
    """Return a window in which an answer is being written."""
    engine.reply, engine.pause = "word " * 1000, 0.05
    window = visit()
    show(window, clip)
    ask(window, "Go on for ever")
    expect(window.locator(".bubble.writing .text")).to_have_text(re.compile("word word"))
    return window


def answers(window):
    return window.locator(".bubble.assistant .text")


def test_a_visitor_uploads_asks_while_it_is_read_and_asks_again(visit, engine, clip):
    engine.rate, engine.pause = 1, 0.15
    window = visit()
    show(window, clip)
    expect(window.locator(".viewer video")).to_be_visible()
    expect(window.locator(".viewer video")).to_have_js_property("duration", 20)
    assert window.locator(".mine option").all_inner_texts() == [clip.name]

    progress = window.locator(".reading .text")
    expect(progress).to_have_text(re.compile(r"Reading: 0:0\d of 0:20 · 123 frames/s · 0:00 left"))
    ask(window, "What <i>moves</i> & why?")
    expect(window.get_by_label("Question")).to_have_value("")
    expect(window.locator(".bubble.writing")).to_be_visible()
    texts = {""}
    while (text := window.evaluate("document.querySelector('.bubble.writing .text')?.textContent")) is not None:
        texts.add(text)
        time.sleep(0.05)
    assert len(texts) > 2, "the answer came at once"
    expect(answers(window)).to_have_text("You asked: What <i>moves</i> & why? ", use_inner_text=False)
    expect(window.locator(".bubble .note").last).to_have_text(re.compile(r"About the first 0:\d\d of the video"))
    expect(progress).to_have_text(re.compile("Reading"))  # the answer was there before the reading ended
    engine.rate = 100

    expect(progress).to_have_text("Read: 0:20 · 20 frames · 123 frames/s")
    ask(window, "And then?")
    expect(answers(window)).to_have_count(2)
    assert [question.so_far for question in engine.questions] == [True, False]
    turns = engine.questions[1].turns
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].parts[1] == "What <i>moves</i> & why?"
    assert turns[1].parts == ("You asked: What <i>moves</i> & why? ",)

    window.reload()
    expect(answers(window)).to_have_count(2)
    expect(window.locator(".viewer video")).to_be_visible()
    window.get_by_role("button", name="Clear").click()
    expect(window.locator(".bubble")).to_have_count(0)
    ask(window, "First again")
    expect(answers(window)).to_have_count(1)
    assert len(engine.questions[2].turns) == 1


def test_a_second_visitor_sees_nothing_of_the_first(visit, clip):
    first, second = visit(), visit()
    show(first, clip)
    ask(first, "My secret question")
    expect(answers(first)).to_have_count(1)
    second.reload()
    second.locator(".picker").wait_for()
    time.sleep(1)
    assert second.locator(".mine").is_hidden()
    assert second.locator(".bubble, video").count() == 0
    address = first.locator(".viewer video").get_attribute("src")
    assert first.request.get(f"{first.url}{address}").status == 200
    assert second.request.get(f"{second.url}{address}").status == 404

    show(second, clip)  # the same bytes are not a way in
    ask(second, "My own question")
    expect(answers(second)).to_have_text(re.compile("My own question"))
    assert second.locator(".mine option").count() == 1
    assert "secret" not in second.content()


def test_files_that_cannot_be_used_are_explained(visit, tmp_path, uploads, clip):
    window = visit()
    large, text, broken = tmp_path / "large.mp4", tmp_path / "notes.mp4", tmp_path / "broken.webm"
    large.write_bytes(bytes(100_001))
    text.write_bytes(b"text, not a video")
    broken.write_bytes(clip.read_bytes()[:200])
    problem = window.locator(".picker .problem")
    choose(window, large)
    expect(problem).to_have_text(re.compile(r"^large.mp4 has 0.1 MB. The largest upload is 0.1 MB: send a shorter"))
    choose(window, text)
    expect(problem).to_have_text(re.compile("^notes.mp4: not a readable video"))
    choose(window, broken)
    expect(problem).to_have_text(re.compile("^broken.webm: "))
    assert uploads() == []
    show(window, clip)
    expect(problem).to_be_hidden()


def test_a_video_that_breaks_while_it_is_read_is_explained(visit, engine, clip):
    engine.damage = "clip.mp4: damaged after 3 s. Repair it, or send another file"
    window = visit()
    show(window, clip)
    expect(window.get_by_role("alert").filter(has_text=engine.damage)).to_be_visible()
    ask(window, "What is in it?")
    expect(window.locator(".bubble.problem .note")).to_have_text(engine.damage)


def test_the_servers_limit_is_explained_too(chromium, engine, settings, clip):
    app = create_app(settings, engine, MediaLibrary(replace(settings, max_upload_gb=1e-6)))
    with running(app) as address:
        window = chromium.new_page()
        window.goto(address)
        choose(window, clip)
        problem = window.locator(".picker .problem")
        expect(problem).to_have_text(re.compile(f"^{re.escape(clip.name)}: .*larger|^{re.escape(clip.name)}: .*most"))
        window.close()


def test_an_answer_can_be_stopped(visit, engine, clip):
    window = window_with_an_endless_answer(visit, engine, clip)
    window.get_by_role("button", name="Stop").click()
    expect(answers(window)).to_have_count(1)
    expect(window.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    assert engine.answers[0].cancelled


def test_a_conversation_can_be_cleared_while_an_answer_is_written(visit, engine, clip):
    window = window_with_an_endless_answer(visit, engine, clip)
    window.get_by_role("button", name="Clear").click()
    expect(window.locator(".bubble")).to_have_count(0)
    expect(window.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    assert engine.answers[0].cancelled
    time.sleep(0.5)
    assert window.locator(".bubble").count() == 0


def test_an_answer_stays_with_its_video(visit, engine, clip, tmp_path):
    engine.reply, engine.pause = "word " * 30, 0.1
    window = visit()
    show(window, clip)
    ask(window, "About the first")
    expect(window.locator(".bubble.writing .text")).to_have_text(re.compile("word word"))
    show(window, write_clip(tmp_path / "second.webm", 3))
    expect(window.locator(".bubble")).to_have_count(0)
    engine.reply = "short"
    ask(window, "About the second")
    expect(answers(window)).to_have_text("short ")
    wait_for(lambda: engine.answers[0].cancelled, 30)  # the first answer has ended, too
    time.sleep(0.5)
    assert window.locator(".bubble").count() == 2
    window.get_by_label("Your videos").select_option(label=clip.name)
    expect(answers(window)).to_have_text(re.compile("^(word ){30} *$"))


def test_an_answer_ends_when_its_window_is_closed(visit, engine, clip, monkeypatch):
    monkeypatch.setattr(tabs, "GRACE_SECONDS", 0.3)
    window = window_with_an_endless_answer(visit, engine, clip)
    window.close()
    wait_for(lambda: engine.answers[0].cancelled, 5)


def test_a_busy_server_says_when_to_ask_again(visit, engine, clip):
    engine.busy = 1
    window = visit()
    show(window, clip)
    ask(window, "Now?")
    expect(window.locator(".bubble.problem .note")).to_have_text("all places are taken. Ask again in 7 s")
    ask(window, "And now?")
    expect(answers(window)).to_have_text(re.compile("And now"))


def test_a_question_without_a_video_is_not_lost(visit, clip):
    window = visit()
    window.locator(".picker").wait_for()
    ask(window, "What is this?")
    expect(window.locator(".bubble.problem .note")).to_have_text("Choose a video first, then ask.")
    expect(window.get_by_label("Question")).to_have_value("What is this?")
    show(window, clip)
    expect(window.locator(".bubble")).to_have_count(0)
    window.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(window)).to_have_count(1)


def test_videos_are_chosen_and_removed(visit, tmp_path, uploads, clip):
    window = visit()
    show(window, clip)
    ask(window, "About the block")
    expect(answers(window)).to_have_count(1)
    show(window, write_clip(tmp_path / "second.webm", 3))
    expect(window.locator(".bubble")).to_have_count(0)
    window.get_by_label("Your videos").select_option(label=clip.name)
    expect(answers(window)).to_have_count(1)
    window.get_by_role("button", name="Remove").click()
    expect(window.locator(".mine option")).to_have_text(["second.webm"])
    assert len(uploads()) == 1
    window.on("dialog", lambda dialog: dialog.accept())
    window.get_by_role("button", name="Delete all and leave").click()
    expect(window.locator(".mine")).to_be_hidden()
    assert uploads() == []


def test_answers_are_copied_as_they_are(visit, engine, clip):
    engine.reply = "**a** <b> &amp; ![x](http://example.com/x.png)"
    engine.rate = 1000
    window = visit(permissions=["clipboard-read", "clipboard-write"])
    show(window, clip)
    expect(window.locator(".reading .text")).to_have_text(re.compile("Read:"))
    ask(window, "What?")
    expect(answers(window)).to_have_count(1)
    window.get_by_role("button", name="Copy", exact=True).click()
    wait_for_clipboard(window, engine.reply + " ")
    window.get_by_role("button", name="Copy conversation").click()
    wait_for_clipboard(window, f"You: What?\n\nModel: {engine.reply} ")
    assert window.locator(".bubble img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(visit, clip, scheme, tmp_path):
    window = visit(color_scheme=scheme)
    window.set_viewport_size({"width": 390, "height": 844})
    show(window, shutil.copy(clip, tmp_path / f"{'a long name ' * 9}.webm"))
    ask(window, "What is shown in this clip, told with averyveryveryveryveryveryveryveryveryverylongword?")
    expect(answers(window)).to_have_count(1)
    assert window.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Ask", "Clear", "Copy", "Remove"):
        box = window.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["height"] >= 32, name
    text, background = window.evaluate(
        "[getComputedStyle(document.querySelector('.bubble')).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (lightness(text) > lightness(background)) == (scheme == "dark")


def test_the_keyboard_reaches_everything(visit, clip):
    window = visit()
    show(window, clip)
    ask(window, "First")
    expect(answers(window)).to_have_count(1)
    reached = set()
    window.locator("body").press("Tab")
    for _ in range(40):
        reached.add(window.evaluate("(e => e.textContent.trim() || e.type || e.tagName)(document.activeElement)"))
        window.keyboard.press("Tab")
    wanted = {
        "Delete all and leave",
        "file",
        "Remove",
        "VIDEO",
        "Copy",
        "Copy conversation",
        "textarea",
        "Ask",
        "Clear",
    }
    assert wanted <= reached, reached
    window.get_by_label("Question").focus()
    window.keyboard.type("line 1")
    window.keyboard.press("Shift+Enter")
    window.keyboard.type("line 2")
    window.keyboard.press("Enter")
    expect(window.locator(".bubble.user .text").last).to_have_text("line 1\nline 2", use_inner_text=True)


def test_the_token_is_asked_for_once(visit, engine, tmp_path, clip):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-a-client-1\n")
    settings = Settings(model=tmp_path / "demo", cache=tmp_path / "cache-2", token_file=tokens)
    with running(create_app(settings, engine, MediaLibrary(settings))) as address:
        window = visit(address)
        window.get_by_label("Token").fill("something else")
        window.keyboard.press("Enter")
        expect(window.get_by_role("alert")).to_have_text(re.compile("This token is unknown"))
        window.get_by_label("Token").fill("a-token-of-a-client-1")
        window.keyboard.press("Enter")
        show(window, clip)
        ask(window, "Who am I?")
        expect(answers(window)).to_have_count(1)
        assert engine.questions[0].client == "token:line 1"
        window.reload()
        expect(answers(window)).to_have_count(1)


def wait_for_clipboard(window, text):
    window.wait_for_function("text => navigator.clipboard.readText().then((copied) => copied === text)", arg=text)


def lightness(color: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", color)[:3])
