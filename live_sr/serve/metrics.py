"""The server's counters for Prometheus, on this machine only. Reads the server; changes nothing in it.

The only module that imports prometheus-client, and only when metrics are switched on.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from live_sr.errors import ConfigError
from live_sr.serve.loop import Server

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

HOST = "127.0.0.1"  # counters tell who works when: a scraper elsewhere comes through the site's own proxy


class Metrics:
    """``http://127.0.0.1:PORT/metrics`` while entered.

    Parameters
    ----------
    port : int
        0 takes a free one; see :attr:`address`.
    """

    def __init__(self, server: Server, port: int) -> None:
        self._server = server
        self._port = port
        self.address = ""

    def __enter__(self) -> Metrics:
        """Start to answer.

        Raises
        ------
        ConfigError
            When prometheus-client is missing or the port is in use.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as e:
            raise ConfigError(
                "metrics_port is set but prometheus-client is missing: pip install 'live-sr[serve]', "
                "or set metrics_port = 0"
            ) from e
        registry = CollectorRegistry()
        registry.register(_Counters(self._server))
        try:
            self._http, self._thread = start_http_server(self._port, addr=HOST, registry=registry)
        except OSError as e:
            raise ConfigError(
                f"cannot serve metrics on {HOST}:{self._port}: {e.strerror}. Choose another metrics_port"
            ) from e
        self.address = f"http://{HOST}:{self._http.server_port}/metrics"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Counters:
    """Builds the metric families when asked, from one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge
        from prometheus_client.core import SummaryMetricFamily as Summary

        server, stats, mailbox = self._server, self._server.stats, self._server.mailbox
        served = Counter("live_sr_frames_served", "Frames answered with a result.", labels=["model"])
        for model, did in stats.models.items():
            served.add_metric([model], did.frames)
        yield served
        refused = Counter("live_sr_refused", "Frames and sessions refused, by reason.", labels=["code"])
        for code, n in stats.refused.items():
            refused.add_metric([code], n)
        yield refused
        yield Counter("live_sr_malformed", "Messages that could not be read.", value=stats.malformed)
        dropped = Counter("live_sr_answers_dropped", "Answers that reached nobody.", labels=["reason"])
        dropped.add_metric(["unreachable"], stats.unreachable)
        dropped.add_metric(["stale"], stats.stale)
        yield dropped
        forgotten = Counter("live_sr_clients_forgotten", "Clients given up.", labels=["reason"])
        forgotten.add_metric(["slow"], stats.slow_clients)
        forgotten.add_metric(["silent"], stats.silent_clients)
        yield forgotten
        yield Counter("live_sr_resent", "Frames offered again while still held.", value=stats.resent)
        yield Gauge("live_sr_ready", "1 when all models are warm.", value=server.state == "ready")
        yield Gauge("live_sr_sessions", "Clients connected.", value=server.sessions)
        yield Gauge("live_sr_waiting_frames", "Frames waiting for the engine.", value=mailbox.frames)
        yield Gauge("live_sr_waiting_bytes", "Memory of the waiting frames.", value=mailbox.bytes)
        yield Gauge("live_sr_waiting_bytes_limit", "Memory allowed for them.", value=mailbox.max_bytes)
        yield Counter("live_sr_busy_seconds", "Time the engine spent computing.", value=stats.busy_s)
        calls = Summary("live_sr_batch_seconds", "Computing time of one call of the engine.", labels=["model"])
        recent = Gauge("live_sr_compute_ms", "Computing time of recent frames.", labels=["model", "percentile"])
        for model, did in stats.models.items():
            calls.add_metric([model], count_value=did.batches, sum_value=did.busy_s)
            for name, ms in did.computed.percentiles()._asdict().items():
                recent.add_metric([model, name], ms)
        yield calls
        yield recent
