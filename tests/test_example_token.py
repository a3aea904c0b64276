"""examples/token_refresh.py runs, in one process and over a server."""

import pytest

from tests.test_examples import run


@pytest.mark.parametrize("where", ["memory", "server"])
def test_each_wave_of_requests_fetches_one_token(
    where: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server_url") if where == "server" else None
    lines = run("token_refresh.py", url=url).splitlines()
    assert lines == [
        f"wave {wave}: 300 requests accepted, {wave} tokens fetched" for wave in (1, 2, 3)
    ]
