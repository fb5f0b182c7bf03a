"""Numbers for Prometheus: requests, answers, and what the engine and the library say of themselves."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ma2mba.serving.contract import Engine, Library, Usage

BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The numbers of one server."""

    def __init__(self, engine: Engine, library: Library):
        registry = self._registry = CollectorRegistry()
        registry.register(_Statuses(engine.status, library.status))
        names = ("route", "method", "status")
        self.requests = Counter("ma2mba_requests", "Requests that have ended.", names, registry=registry)
        self.seconds = Histogram("ma2mba_request_seconds", "", ("route",), buckets=BUCKETS, registry=registry)
        self.running = Gauge("ma2mba_requests_running", "Requests that are being answered.", registry=registry)
        self._first = Histogram(
            "ma2mba_first_token_seconds",
            "Seconds from a question to its first text, by whether all its media were read before.",
            ("known",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._prompt = Counter("ma2mba_prompt_tokens", "Tokens of questions and frames.", registry=registry)
        self._cached = Counter("ma2mba_cached_tokens", "Tokens that were not read again.", registry=registry)
        self._answers = Counter("ma2mba_answer_tokens", "Tokens of answers.", registry=registry)

    def first_piece(self, seconds: float, *, known: bool) -> None:
        """Note the first text of an answer."""
        self._first.labels("yes" if known else "no").observe(seconds)

    def answered(self, usage: Usage) -> None:
        """Note the tokens of answers that have ended."""
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._answers.inc(usage.answer_tokens)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Statuses(Collector):
    """Numbers that are asked for when somebody looks."""

    def __init__(self, *sources: Callable[[], dict[str, float]]):
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            for key, value in source().items():
                name = f"ma2mba_{key}"
                family = CounterMetricFamily if key.endswith("_total") else GaugeMetricFamily
                yield family(name, key.replace("_", " "), value=value)


class Counting:
    """Counts the requests of an application, by route: never by path, which a client could choose."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 499

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "") or "page"
            self._metrics.running.dec()
            self._metrics.requests.labels(route, _method(scope["method"]), status).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - began)


def _method(name: str) -> str:
    return name if name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
