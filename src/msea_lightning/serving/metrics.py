"""What Prometheus reads of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of its own.

    Attributes:
        requests: Requests for answers by plugin (empty where none was found) and HTTP status.
        utterances: Utterances answered, by plugin.
        seconds: Seconds from a request's first byte to its answer.
        waiting: Requests that are being answered.
        batches: Utterances that were computed together; each counts once.
        engine_seconds: Seconds per request to the engine.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "msea_requests", "Requests", ["plugin", "status"], registry=registry
        )
        self.utterances = Counter("msea_utterances", "Utterances", ["plugin"], registry=registry)
        self.seconds = Histogram(
            "msea_request_seconds", "Time of a request", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("msea_requests_in_progress", "Requests", registry=registry)
        self.batches = Histogram(
            "msea_batch_utterances", "Utterances in a batch", buckets=_BATCHES, registry=registry
        )
        self.engine_seconds = Histogram(
            "msea_engine_request_seconds", "Time at the engine", buckets=_SECONDS, registry=registry
        )

    def written(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
