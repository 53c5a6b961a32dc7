"""What Prometheus reads. With PROMETHEUS_MULTIPROC_DIR set, any worker answers for all of them.

That directory must exist, and be empty, when the service starts. Only counters and histograms are
kept, which add up over workers that have ended; a gauge would need gunicorn's `child_exit` hook.
"""

import os
from time import perf_counter

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("http_requests_total", "HTTP requests answered", ["method", "route", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Time to the end of the answer", ["method", "route"])
CACHE = Counter("items_cache_total", "Items asked of the cache", ["result"])


def render() -> bytes:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    everyone = CollectorRegistry()
    MultiProcessCollector(everyone)
    return generate_latest(everyone)


class Measure:
    """ASGI middleware; plain, so that bodies stream through it and WebSockets pass by."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, start = 500, perf_counter()

        async def watch(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # the pattern: a path has too many values
            REQUESTS.labels(scope["method"], route, status).inc()
            SECONDS.labels(scope["method"], route).observe(perf_counter() - start)
