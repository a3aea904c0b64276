"""examples/metrics and examples/grafana_dashboard.json: one shows what the other looks at."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="pip install -e '.[dev]'")

from dsync.metrics.catalogue import METRICS
from tests.conftest import settled
from tests.metrics.scraping import Scrape
from tests.test_examples import EXAMPLES, environment

promql_parser: Any = pytest.importorskip("promql_parser", reason="pip install -e '.[dev]'")

WORKER = EXAMPLES / "metrics" / "worker.py"
DASHBOARD = (EXAMPLES / "grafana_dashboard").with_suffix(".json")
ORDERS = 30  # of each worker

# What Prometheus adds when it scrapes.
ADDED = {"instance", "job"}
# What Grafana puts in for its variables.
BUILT_IN = {"__rate_interval": "1m", "__range": "1h"}


class Worker:
    """A process of the example."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), "0", str(ORDERS)],
            env=environment(url),
            stdout=subprocess.PIPE,
            text=True,
        )

    def begun(self) -> int:
        """-> its port; it shows metrics."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r":(\d+)/metrics", line)
        assert found, line
        return int(found[1])

    def end(self) -> None:
        """It is told to, and ends well."""
        self._process.send_signal(signal.SIGTERM)
        said, _ = self._process.communicate(timeout=20)
        assert (self._process.returncode, said) == (0, "told to stop\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def all_packed(port: int) -> Scrape:
    """What a worker shows that has nothing left to do."""

    async def packed() -> bool:
        heard = list(Scrape(port).matching("dsync_bus_published_total"))
        return bool(heard) and heard[0].value == ORDERS

    await settled(packed, "not all orders were packed", within=30)
    return Scrape(port)


@pytest.fixture(params=["memory", "server"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    found: str = request.getfixturevalue("server_url")
    return found


@pytest.fixture
def workers(url: str) -> Iterator[list[Worker]]:
    made = [Worker(url) for _ in range(2)]
    yield made
    for worker in made:
        worker.kill()


async def test_what_workers_of_one_shop_show_adds_up(workers: list[Worker], url: str):
    for scrape in [await all_packed(worker.begun()) for worker in workers]:
        for of in ({"kind": "lock", "name": "order:*"}, {"kind": "semaphore", "name": "tables"}):
            assert scrape.sum("dsync_acquire_wait_seconds_count", **of) == ORDERS
            assert scrape.sum("dsync_hold_seconds_count", **of) == ORDERS
            assert scrape.sum("dsync_held", **of) == 0
            assert scrape.sum("dsync_lost_total", **of) == 0
        assert scrape.sum("dsync_limiter_units_total", name="payments") == ORDERS
        if url == "memory://":
            assert scrape.sum("dsync_bus_received_total", name="orders") == ORDERS
    for worker in workers:
        worker.end()


# -- the dashboard ---------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def targets() -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in panels() for target in panel.get("targets", [])]


def put_in(text: str) -> str:
    """What Grafana asks Prometheus."""
    for name, value in BUILT_IN.items():
        text = text.replace(f"${name}", value)
    return re.sub(r"\$\w+", ".*", text)


class Query:
    """What an expression looks at."""

    def __init__(self, text: str) -> None:
        self.selected: list[tuple[str, set[str]]] = []  # metrics, and the labels they are picked by
        self.grouped: set[str] = set()  # the labels they are summed up by
        promql_parser.walk(promql_parser.parse(put_in(text)), self._note)

    def _note(self, expr: Any) -> None:
        if isinstance(expr, promql_parser.VectorSelector):
            labels = {matcher.name for matcher in expr.matchers.matchers}
            self.selected.append((expr.name, labels))
        if isinstance(expr, promql_parser.AggregateExpr) and expr.modifier is not None:
            self.grouped.update(expr.modifier.labels)


def test_a_query_is_seen_through():
    """The tests below would pass on anything, were nothing found in an expression."""
    query = Query('histogram_quantile(0.5, sum by (le, a) (rate(x_bucket{b=~"$b"}[$__range]))) / y')
    assert sorted(query.selected) == [("x_bucket", {"b"}), ("y", set())]
    assert query.grouped == {"le", "a"}


async def test_all_that_the_dashboard_looks_at_is_shown_by_a_worker(server_url: str):
    worker = Worker(server_url)
    try:
        scrape = await all_packed(worker.begun())
    finally:
        worker.kill()
    labels_of: dict[str, set[str]] = {}
    for sample in scrape.samples:
        labels_of.setdefault(sample.name, set()).update(sample.labels)
    for title, target in targets():
        query = Query(target["expr"])
        assert query.selected, title
        for metric, labels in query.selected:
            assert metric in labels_of, f"{title}: no worker shows {metric}"
            assert labels | query.grouped <= labels_of[metric] | ADDED, f"{title}: {metric}"
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert legend <= query.grouped, f"{title}: the legend names what is summed up"


def test_rates_of_counters_and_quantiles_of_buckets():
    """PromQL lets anybody take the rate of a gauge, or the quantile of what has no buckets."""
    for title, target in targets():
        for metric, _ in Query(target["expr"]).selected:
            ranged = re.search(rf"{metric}[^)]*\[", target["expr"])
            cumulative = metric.endswith(("_total", "_count", "_sum", "_bucket"))
            assert bool(ranged) == cumulative, f"{title}: {target['expr']}"
        if "histogram_quantile" in target["expr"]:
            assert re.search(r"sum by \(le\b", target["expr"]), title


def test_the_dashboard_is_one_that_grafana_10_reads():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["id"] is None  # Grafana gives it one
    assert dashboard["uid"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used - set(BUILT_IN) - {"__all"} == variables
    for panel in panels():
        assert panel["type"] in ("row", "stat", "timeseries")
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]


def test_panels_have_ids_and_places_of_their_own():
    for key, found in (
        ("id", [panel["id"] for panel in panels()]),
        ("cell", [cell for panel in panels() for cell in cells(panel["gridPos"])]),
    ):
        twice = [each for each, times in Counter(found).items() if times > 1]
        assert not twice, f"{key}: {twice}"
    for panel in panels():
        ids = [target["refId"] for target in panel.get("targets", [])]
        assert len(ids) == len(set(ids)), panel["title"]


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Of Grafana's grid, which is 24 wide."""
    assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_every_metric_is_on_the_dashboard_or_left_out_on_purpose():
    shown = {metric for _, target in targets() for metric, _ in Query(target["expr"]).selected}
    all_of_them = {metric.name.replace(".", "_") for metric in METRICS}
    assert all_of_them - {base_of(name) for name in shown} == {"dsync_skipped"}


def base_of(shown: str) -> str:
    """What a sample's name begins with: its metric's."""
    return re.sub(r"(_seconds)?(_total|_count|_sum|_bucket)?$", "", shown)


# -- the page of the documents ---------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def test_the_page_has_every_metric():
    for metric in METRICS:
        assert f"| `{metric.name}` | {metric.type}" in PAGE.read_text(), metric.name


def test_the_alerts_of_the_page_look_at_metrics_that_there_are():
    yaml: Any = pytest.importorskip("yaml", reason="pip install -e '.[dev]'")
    (rules,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (group,) = yaml.safe_load(rules)["groups"]
    names = {metric.name.replace(".", "_"): set(metric.labels) for metric in METRICS}
    for rule in group["rules"]:
        query = Query(rule["expr"])
        assert query.selected, rule
        for shown, labels in query.selected:
            metric = base_of(shown)
            assert labels | query.grouped <= names[metric] | ADDED | {"le"}, rule
