"""What a server has done, in Prometheus' form. All counts are per served model name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one server; nothing is kept outside of it.

    A visual token is dropped if it does not enter the last layer.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vispco_requests", "Requests answered, by HTTP status", ["model", "status"], registry=self.registry
        )
        self.in_flight = Gauge(
            "vispco_requests_in_flight", "Requests being read, waiting or answered", registry=self.registry
        )
        self.first_token = self._histogram("vispco_time_to_first_token_seconds", "From arrival to the first token")
        self.whole = self._histogram("vispco_request_seconds", "From arrival to the last token")
        self.prompt = self._counter("vispco_prompt_tokens", "Tokens of prompts, before pruning")
        self.visual = self._counter("vispco_visual_tokens", "Visual tokens of prompts, before pruning")
        self.dropped = self._counter("vispco_visual_tokens_dropped", "Visual tokens that did not enter the last layer")
        self.generated = self._counter("vispco_generated_tokens", "Tokens of answers")

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, ["model"], registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ["model"], buckets=SECONDS, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
