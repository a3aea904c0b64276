"""The example of a leader runs for real, on a real server, and does what it says."""

import re

from tests.test_examples import run


def test_a_worker_that_goes_hands_over_at_once_and_one_that_dies_costs_a_lease(server_url: str):
    output = run("singleton_worker.py", server_url)  # which asserts that nobody wrote too late
    first, told, killed = (float(after) for after in re.findall(r"leads after (.*) s", output))
    assert 0 < told < 1 < killed < 3
    assert first > 0
    assert output.index("gets SIGTERM") < output.index("gets SIGKILL")
