"""Reads what a process shows to Prometheus."""

from collections.abc import Iterator
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = ["Scrape"]


class Scrape:
    """What it showed at one moment."""

    def __init__(self, port: int) -> None:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
        self.samples: list[Sample] = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("dsync_")
        ]

    def matching(self, sample_name: str, /, **labels: str) -> Iterator[Sample]:
        """The samples of this name that have at least these labels."""
        for sample in self.samples:
            if sample.name == sample_name and labels.items() <= sample.labels.items():
                yield sample

    def sum(self, sample_name: str, /, **labels: str) -> float:
        """Of their values; there is at least one."""
        values = [sample.value for sample in self.matching(sample_name, **labels)]
        assert values, f"there is no {sample_name} {labels}"
        return sum(values)
