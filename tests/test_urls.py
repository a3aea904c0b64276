"""Every kind of URL that the README names leads somewhere."""

import os
import tempfile
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

import dsync
from dsync.server import Server
from tests.conftest import settled


async def take_turns(url: str) -> None:
    async with dsync.connect(url) as one, dsync.connect(url) as two:
        async with one.lock("x") as first:
            assert not await two.lock("x").try_acquire()
        async with two.lock("x") as second:
            assert first.fence is not None
            assert second.fence is not None
            assert second.fence > first.fence


async def test_a_unix_socket() -> None:
    with Server.start() as server:
        assert server.url.startswith("unix://")
        await take_turns(server.url)


async def test_valkey_is_another_word_for_redis(server_url: str) -> None:
    assert server_url.startswith("redis://")
    await take_turns(server_url.replace("redis://", "valkey://"))


async def test_the_environment_names_the_server(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSYNC_URL", server_url)
    async with dsync.connect() as client, client.lock("from the environment"):
        assert f":{urlsplit(server_url).port}" in client.store.link.address  # type: ignore[attr-defined]


async def test_embedded_servers_are_shared_by_directory_and_end_with_their_users() -> None:
    with tempfile.TemporaryDirectory(prefix="d-") as directory:
        url = f"embedded://{quote(directory)}"
        await take_turns(url)
        async with dsync.connect(url) as client, client.lock("x"):
            home = Path(directory, "current").resolve()
            assert home.exists()
            pid = int((home / "pid").read_text())
        await settled(lambda: not _runs(pid), "the embedded server has ended", within=10)
        await settled(lambda: not home.exists(), "its home is gone", within=10)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("password", ["secretpa/ss", "secretpa#x", "secretpa?x"])
def test_a_password_with_an_unescaped_mark_is_in_no_message_of_sentinels(password: str) -> None:
    with pytest.raises(ValueError) as raised:
        dsync.Client(f"redis+sentinel://user:{password}@host:1/service")
    assert "secretpa" not in str(raised.value)
