"""What /metrics shows, and the middleware that counts requests."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jakiro_runtime.decoding.scheduler import Scheduler
from jakiro_runtime.decoding.sequence import TokenSequence


class Metrics:
    """Counters of requests and tokens, and how full the scheduler is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        self._scheduler = scheduler
        of = self.registry
        self.requests = Counter("jakiro_requests", "Requests by path and HTTP status", ["path", "status"], registry=of)
        self.tokens = Counter("jakiro_tokens", "Tokens: prompt, cached, completion, accepted", ["kind"], registry=of)
        self.rounds = Counter("jakiro_rounds", "Verification passes, of every answer", registry=of)
        self.first = Histogram(
            "jakiro_first_token_seconds", "From a request's arrival in the queue to its first token", registry=of
        )

    def collect(self) -> list[GaugeMetricFamily]:
        """Gauges, read when asked for."""
        return [
            GaugeMetricFamily("jakiro_running", "Answers that are decoded now", value=self._scheduler.running),
            GaugeMetricFamily("jakiro_waiting", "Answers that wait for their turn", value=self._scheduler.waiting),
        ]

    def count(self, sequences: Sequence[TokenSequence]) -> None:
        """Count answers that ended or were left."""
        for stats in (sequence.stats for sequence in sequences):
            self.tokens.labels("prompt").inc(stats.prompt_tokens)
            self.tokens.labels("cached").inc(stats.reused_tokens)
            self.tokens.labels("completion").inc(stats.new_tokens)
            self.tokens.labels("accepted").inc(sum(stats.accepted))
            self.rounds.inc(stats.rounds)
            if stats.new_tokens:
                self.first.observe(stats.first_token)


class RequestCounter:
    """ASGI middleware: counts every reply by its route and status."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        def count(status: int) -> None:
            path = getattr(scope.get("route"), "path", "other")  # not the URL: anybody may invent those
            self._counter.labels(path, str(status)).inc()

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted if scope["type"] == "http" else send)
        except Exception:
            if not begun:
                count(500)  # the reply is made further out
            raise
