"""What happens when a visitor chooses a video, asks, stops, clears or removes. layout.py connects it to the page."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr

from ma2mba.errors import UserError
from ma2mba.inference.sampling import Sampling
from ma2mba.serving.contract import Busy, Engine, Library, Medium, Progress, Question, Stored
from ma2mba.serving.errors import FAULT, refusal
from ma2mba.serving.page.tabs import Tab, newest
from ma2mba.serving.page.talks import Exchange, Talk, answer, clock
from ma2mba.serving.page.visitors import Visitor, Visitors
from ma2mba.serving.page.watching import OVER, Watch
from ma2mba.terminal import error_text

logger = logging.getLogger(__name__)

Update = dict[str, Any]
LONGEST_ANSWER = 512
"""Tokens."""
PROGRESS_SECONDS, TEXT_SECONDS = 0.4, 0.06
"""The page shows progress, and new text, no more often than this."""
NOTHING: Update = {"id": "", "kind": "", "name": ""}
BUTTONS_IDLE = (gr.update(visible=True), gr.update(visible=False))
BUTTONS_BUSY = (gr.update(visible=False), gr.update(visible=True))
"""Which of the buttons Ask and Stop the page shows."""


class Events:
    """The handlers of the page's events. Each takes what the page sends, and returns what the page shows.

    All are coroutines: Gradio runs functions in threads, and the engine and the library are used in the loop's thread.
    """

    def __init__(self, engine: Engine, library: Library, visitors: Visitors, longest_answer: int = LONGEST_ANSWER):
        self._engine, self._library, self._visitors = engine, library, visitors
        self._longest = min(longest_answer, LONGEST_ANSWER)

    async def arrive(self, request: gr.Request) -> tuple[Any, ...]:
        """Show the visitor's latest video: the page was opened, or loaded again."""
        visitor = self._visitor(request)
        mine = self._library.list(visitor.owner)
        return self._view(request, max(mine, key=lambda stored: stored.created) if mine else None)

    async def show(self, id: str, request: gr.Request) -> tuple[Any, ...]:
        """Show a video that the visitor has chosen or uploaded."""
        visitor = self._visitor(request)
        try:
            return self._view(request, self._library.find(id, visitor.owner))
        except Exception as error:
            return self._view(request, None, told(error))

    async def fetch(self, url: str, request: gr.Request) -> tuple[Any, ...]:
        """Fetch the video at an address, and show it."""
        visitor = self._visitor(request)
        try:
            return self._view(request, await self._library.keep(url.strip(), visitor.owner))
        except Exception as error:
            return self._view(request, None, told(error))

    async def remove(self, id: str, request: gr.Request) -> tuple[Any, ...]:
        """Delete a video, with its conversation."""
        visitor = self._visitor(request)
        self._tab(visitor, request).stop()
        visitor.forget(id)
        try:
            await self._library.delete(id, visitor.owner)
        except UserError as error:
            logger.info("a video was removed twice: %s", error)
        return await self.arrive(request)

    async def progress(self, id: str, request: gr.Request) -> AsyncGenerator[Update, None]:
        """Read the chosen video, and tell how far it is read, until it is read or another one is chosen."""
        visitor = self._visitor(request)
        tab = self._tab(visitor, request)
        tab.stop("progress")
        if not id:
            return
        async with aclosing(newest(self._reading(visitor, id), tab, "progress", PROGRESS_SECONDS)) as updates:
            async for update in updates:
                yield update

    async def _reading(self, visitor: Visitor, id: str) -> AsyncGenerator[Update, None]:
        """Yield how far a video is read. A full queue is tried again."""
        try:
            while True:
                try:
                    watch = await self._watch(visitor, id)
                    break
                except Busy as busy:
                    yield {"state": "queued", "text": f"Waiting: {busy}"}
                    await asyncio.sleep(busy.retry_after)
            async with aclosing(watch.events()) as events:
                async for progress in events:
                    yield progress_shown(progress)
        except Exception as error:
            yield {"state": "failed", "text": told(error)}

    async def _watch(self, visitor: Visitor, id: str) -> Watch:
        """Return the reading of a video, which is started if need be. Raise Busy, UserError."""
        medium = await self._hold(visitor, id)
        let_go = partial(self._library.release, medium)
        watch = visitor.watches.get(id)
        if watch and watch.useful:
            let_go()
            return watch
        try:
            watch = visitor.watches[id] = Watch(self._engine.read(medium, visitor.client), let_go)
        except BaseException:
            let_go()
            raise
        return watch

    async def _hold(self, visitor: Visitor, id: str) -> Medium:
        """Return a visitor's medium, which is not deleted before it is released. Raise Refused."""
        return await self._library.fetch(id, self._library.find(id, visitor.owner).medium.kind, visitor.owner)

    async def ask(self, text: str, id: str, request: gr.Request) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answer a question about the chosen video. Yields the question's box, the conversation and the buttons."""
        visitor = self._visitor(request)
        if not id:
            yield gr.skip(), [{"role": "problem", "text": "", "note": "Choose a video first, then ask."}], *BUTTONS_IDLE
            return
        talk, exchange, tab = visitor.talk(id), Exchange(text.strip()), self._tab(visitor, request)
        if not exchange.question or talk.busy:
            yield gr.skip(), *conversation(talk)
            return
        talk.exchanges.append(exchange)
        talk.busy = True
        try:
            yield "", *conversation(talk)
            writing = self._answer(visitor, id, exchange)
            async with aclosing(newest(writing, tab, f"answer {id}", TEXT_SECONDS)) as steps:
                async for _ in steps:
                    if tab.shown == id:
                        yield gr.skip(), *conversation(talk)
        finally:
            talk.busy = False
            if not exchange.answer and not exchange.note:
                exchange.note = "Stopped."
        if tab.shown == id:
            yield gr.skip(), *conversation(talk)

    async def _answer(self, visitor: Visitor, id: str, exchange: Exchange) -> AsyncGenerator[None, None]:
        """Write the answer, or why there is none, into `exchange`. Yields after each change."""
        medium = None
        try:
            medium = await self._hold(visitor, id)
            progress = await self._begun(visitor, id)
            turns = visitor.talk(id).turns(medium, exchange.question)
            so_far = progress.state in ("queued", "reading")
            question = Question(turns, Sampling(max_tokens=self._longest), visitor.client, so_far=so_far)
            async with aclosing(answer(self._engine, question, exchange)) as steps:
                async for _ in steps:
                    yield
        except Busy as error:
            refuse(exchange, f"{error}. Ask again in {max(1, round(error.retry_after))} s")
        except Exception as error:
            refuse(exchange, told(error))
        finally:
            if medium:
                self._library.release(medium)
        if not exchange.answer and not exchange.problem:
            exchange.note += "The answer is empty."

    async def _begun(self, visitor: Visitor, id: str) -> Progress:
        """Return the progress of a reading once there is something to ask about. Raise Busy, UserError."""
        watch = await self._watch(visitor, id)
        if not watch.progress.frames and watch.progress.state not in OVER:
            async with aclosing(watch.events()) as events:
                async for progress in events:
                    if progress.frames or progress.state in OVER:
                        break
        if watch.progress.state == "failed":
            raise UserError(watch.progress.error)
        return watch.progress

    async def stop(self, id: str, request: gr.Request) -> None:
        """Stop the answer that is being written in this window."""
        self._tab(self._visitor(request), request).stop(f"answer {id}")

    async def clear(self, id: str, request: gr.Request) -> list[Update]:
        """Forget the conversation about a video."""
        visitor = self._visitor(request)
        self._tab(visitor, request).stop(f"answer {id}")
        visitor.talk(id).exchanges.clear()
        return []

    def _view(self, request: gr.Request, chosen: Stored | None, problem: str = "") -> tuple[Any, ...]:
        """Return what the page shows of a video: the picker, the video, its progress, the conversation, the buttons."""
        visitor = self._visitor(request)
        self._tab(visitor, request).shown = chosen.id if chosen else ""
        mine = sorted(self._library.list(visitor.owner), key=lambda stored: stored.created)
        videos = [{"id": stored.id, "name": stored.medium.name} for stored in mine]
        if not chosen:
            shown = {"state": "failed" if problem else "none", "text": problem}
            return gr.HTML(value="", videos=videos), NOTHING, shown, [], *BUTTONS_IDLE
        viewer = {"id": chosen.id, "kind": chosen.medium.kind, "name": chosen.medium.name}
        shown = {"state": "queued", "text": ""}
        return gr.HTML(value=chosen.id, videos=videos), viewer, shown, *conversation(visitor.talks.get(chosen.id))

    def _visitor(self, request: gr.Request) -> Visitor:
        return self._visitors.expect(request.cookies)

    def _tab(self, visitor: Visitor, request: gr.Request) -> Tab:
        return self._visitors.tab(visitor, request.session_hash or "")


def conversation(talk: Talk | None) -> tuple[Any, ...]:
    """Return a conversation, and the buttons beside it."""
    return talk.shown() if talk else [], *(BUTTONS_BUSY if talk and talk.busy else BUTTONS_IDLE)


def told(error: Exception) -> str:
    """Return what a visitor is told of an error, with a remedy. The log has the details of a fault of ours."""
    if isinstance(error, UserError | Busy):
        return error_text(str(refusal(error)))
    logger.exception("the page has failed")
    return str(FAULT)


def refuse(exchange: Exchange, problem: str) -> None:
    """Say why there is no answer. What was written of it stays."""
    exchange.problem, exchange.note = True, problem


def progress_shown(progress: Progress) -> Update:
    """Return what the page shows of a progress."""
    share = min(1.0, progress.seconds / progress.duration) if progress.duration else 0.0
    return {"state": progress.state, "share": share, "text": _sentence(progress)}


def _sentence(progress: Progress) -> str:
    if progress.state == "failed":
        return progress.error
    if progress.state == "queued":
        return f"Waiting: {progress.waiting} before this one." if progress.waiting else "Starting to read."
    speed = progress.frames_per_second
    if progress.state == "ready":
        parts = [f"Read: {clock(progress.seconds)}", f"{progress.frames:,} frames"]
    else:
        parts = [f"Reading: {clock(progress.seconds)} of {clock(progress.duration)}"]
    if speed:
        parts.append(f"{speed:,.0f} frames/s")
        if progress.state == "reading":
            parts.append(f"{clock((progress.total - progress.frames) / speed)} left")
    return " · ".join(parts)
