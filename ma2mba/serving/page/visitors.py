"""The visitors of the page. Each has a session: a secret cookie, and videos that nobody else sees."""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ma2mba.serving.contract import Library
from ma2mba.serving.errors import Refused
from ma2mba.serving.page.tabs import Tab
from ma2mba.serving.page.talks import Talk
from ma2mba.serving.page.watching import Watch

MOST_VISITORS = 10_000
MOST_TABS = 100
"""Windows of one visitor. The oldest is forgotten first."""
KEY, TAB_NAME = re.compile(r"[\w-]{43}", re.ASCII), re.compile(r"[0-9a-z]{4,40}")


@dataclass(eq=False)
class Visitor:
    """A session of the page.

    client    whose limits its questions and readings count to
    owner     the owner of its uploads in the library
    """

    client: str
    owner: str
    used: float = field(default_factory=time.monotonic)
    tabs: dict[str, Tab] = field(default_factory=dict)
    talks: dict[str, Talk] = field(default_factory=dict)
    watches: dict[str, Watch] = field(default_factory=dict)

    def talk(self, video: str) -> Talk:
        return self.talks.setdefault(video, Talk())

    def forget(self, video: str) -> None:
        """Stop reading a video, and forget what was asked about it."""
        if watch := self.watches.pop(video, None):
            watch.release()
        self.talks.pop(video, None)

    def leave(self) -> None:
        """Stop everything that runs for this visitor."""
        for tab in self.tabs.values():
            tab.stop()
        for video in list(self.watches):
            self.forget(video)


class Visitors:
    """All sessions, by their cookie. A session that nobody uses for `keep_seconds` ends, and its videos are deleted."""

    def __init__(self, library: Library, port: int, keep_seconds: float):
        self._library, self._keep = library, keep_seconds
        self._sessions: dict[str, Visitor] = {}
        self._tabs: dict[str, Visitor] = {}
        self.cookie = f"ma2mba-page-{port}"
        """Has the port in its name: a browser sends the cookies of a host to all its ports."""

    def start(self, client: str, cookies: Mapping[str, str]) -> str:
        """Start a session for a client. Return the value of its cookie. Raise Refused (503) if there are too many.

        After a restart of the server, a visitor finds the videos that were uploaded before.
        """
        if len(self._sessions) >= MOST_VISITORS:
            self._make_room()
        key = cookies.get(self.cookie, "")
        if key in self._sessions or not KEY.fullmatch(key) or not self._library.list(owner_of(client, key)):
            key = secrets.token_urlsafe(32)
        self._sessions[key] = Visitor(client, owner_of(client, key))
        return key

    def _make_room(self) -> None:
        """Forget the oldest session without a video. Raise Refused (503) if there is none."""
        unused = next((key for key, visitor in self._sessions.items() if not (visitor.talks or visitor.watches)), None)
        if unused is None:
            raise Refused("too many visitors are here. Try again later", 503, "busy", retry_after=60)
        for name in self._sessions.pop(unused).tabs:
            self._tabs.pop(name, None)

    def find(self, cookies: Mapping[str, str]) -> Visitor | None:
        """Return the visitor whose cookie this is."""
        visitor = self._sessions.get(cookies.get(self.cookie, ""))
        if visitor:
            visitor.used = time.monotonic()
        return visitor

    def expect(self, cookies: Mapping[str, str]) -> Visitor:
        """Return the visitor whose cookie this is. Raise Refused (401) if the session is unknown or has ended."""
        visitor = self.find(cookies)
        if not visitor:
            raise Refused("the session has ended, or cookies are blocked. Load the page again", 401, "session_ended")
        return visitor

    def tab(self, visitor: Visitor, name: str) -> Tab:
        """Return a window of a visitor. Raise Refused (403) for a window of somebody else."""
        if not TAB_NAME.fullmatch(name) or self._tabs.setdefault(name, visitor) is not visitor:
            raise Refused("this window is not yours. Load the page again", 403, "not_yours")
        if name not in visitor.tabs and len(visitor.tabs) >= MOST_TABS:
            oldest = next(iter(visitor.tabs))
            visitor.tabs.pop(oldest).stop()
            del self._tabs[oldest]
        return visitor.tabs.setdefault(name, Tab())

    async def end(self, visitor: Visitor) -> None:
        """End a session: stop what runs for it, and delete its videos."""
        for key in [key for key, value in self._sessions.items() if value is visitor]:
            del self._sessions[key]
        visitor.leave()
        for name in visitor.tabs:
            self._tabs.pop(name, None)
        await self._library.end(visitor.owner)

    def stop(self) -> None:
        """Stop following the readings: the server is being stopped. Answers may end."""
        for visitor in self._sessions.values():
            for tab in visitor.tabs.values():
                tab.stop("progress")

    async def sweep(self, every: float = 30.0) -> None:
        """End sessions whose time is over, for ever."""
        while True:
            await asyncio.sleep(every)
            for visitor in list(self._sessions.values()):
                if time.monotonic() - visitor.used > self._keep and not any(tab.busy for tab in visitor.tabs.values()):
                    await self.end(visitor)


def owner_of(client: str, key: str) -> str:
    """Return the name under which the library keeps the uploads of a session. It does not reveal the cookie."""
    return f"page:{hashlib.sha256(f'{client} {key}'.encode()).hexdigest()}"
