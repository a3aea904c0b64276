"""The examples of jobs run for real, and do what they say."""

from tests.test_examples import run


def test_each_night_one_process_makes_the_report_and_no_charge_is_lost(server_url: str) -> None:
    output = run("nightly_job.py", url=server_url)  # which asserts that it did
    assert "3 reports in 3 nights" in output
    assert "accounts: {'Ada': 9, 'Grace': 9, 'Barbara': 9}" in output
