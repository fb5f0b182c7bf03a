"""What runs for a window: it shows the newest values, and ends soon after the window is closed."""

import asyncio

import pytest

from ma2mba.serving.page import tabs
from ma2mba.serving.page.tabs import Tab, newest


async def numbers(last: int, pause: float, ended: list[int]):
    try:
        for number in range(last + 1):
            yield number
            await asyncio.sleep(pause)
    finally:
        ended.append(1)


def test_values_are_skipped_but_never_the_last():
    async def main():
        ended = []
        got = [value async for value in newest(numbers(50, 0.002, ended), Tab(), "a", every=0.03)]
        assert got[-1] == 50
        assert len(got) < 20
        assert got == sorted(set(got))
        assert ended == [1]

    asyncio.run(main())


def test_an_error_of_the_source_is_raised_after_its_values():
    async def broken():
        yield 1
        raise ValueError("broken")

    async def main():
        got = []
        with pytest.raises(ValueError, match="broken"):
            await _collect(_noted(newest(broken(), Tab(), "a", every=0), got))
        assert got == [1]

    asyncio.run(main())


def test_a_new_task_of_a_name_stops_the_old_one():
    async def main():
        tab, ended = Tab(), []
        old = asyncio.create_task(_collect(newest(numbers(10_000, 0.01, ended), tab, "a", 0)))
        other = asyncio.create_task(_collect(newest(numbers(20, 0.005, []), tab, "b", 0)))
        await asyncio.sleep(0.05)
        await _collect(newest(numbers(2, 0, []), tab, "a", 0))
        await asyncio.wait_for(old, 1)
        assert ended == [1]
        assert (await other)[-1] == 20

    asyncio.run(main())


def test_what_runs_for_a_closed_window_ends(monkeypatch):
    monkeypatch.setattr(tabs, "GRACE_SECONDS", 0.05)

    async def main():
        tab, ended = Tab(), []
        tab.joined()
        running = asyncio.create_task(_collect(newest(numbers(10_000, 0.01, ended), tab, "a", 0)))
        tab.opened()
        await asyncio.sleep(0.1)
        assert not running.done()
        tab.closed()
        tab.opened()  # Gradio closes a stream and opens the next one
        await asyncio.sleep(0.1)
        assert not running.done()
        tab.closed()
        await asyncio.wait_for(running, 1)
        assert ended == [1]

    asyncio.run(main())


def test_a_window_that_never_listens_is_closed(monkeypatch):
    monkeypatch.setattr(tabs, "GRACE_SECONDS", 0.05)

    async def main():
        tab, ended = Tab(), []
        tab.joined()
        await asyncio.wait_for(_collect(newest(numbers(10_000, 0.01, ended), tab, "a", 0)), 1)
        assert ended == [1]

    asyncio.run(main())


async def _noted(source, values):
    async for value in source:
        values.append(value)
        yield value


async def _collect(source):
    return [value async for value in source]
