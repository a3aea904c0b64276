"""What importing dsync costs those who do not measure, and what those see who lack an extra."""

import subprocess
import sys

import pytest

ALONE = """
import sys
import dsync, dsync.telemetry, dsync.metrics
heavy = ("prometheus_client", "opentelemetry", "dsync.metrics.")
assert not [name for name in sys.modules if name.startswith(heavy)]
"""
# `None` in sys.modules is how Python itself marks what cannot be imported.
LACKING = """
import sys
sys.modules["{package}"] = None
try:
    import dsync.metrics.{module}
except ImportError as error:
    print(error)
"""
WITHOUT_SDK = """
import sys
sys.modules["opentelemetry.sdk"] = None
import dsync.metrics.otel
dsync.metrics.otel.OpenTelemetryHook()
"""


def run(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_importing_dsync_imports_no_metrics():
    run(ALONE)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("otel", "opentelemetry.metrics", "otel"),
    ],
)
def test_who_lacks_the_package_is_told_which_extra_brings_it(module: str, package: str, extra: str):
    said = run(LACKING.format(package=package, module=module))
    assert said.startswith(f"dsync.metrics.{module} needs the package ")
    assert f"pip install 'dsync-redis[{extra}]'" in said


def test_the_sdk_of_opentelemetry_is_the_applications_affair():
    run(WITHOUT_SDK)
