"""S04 and A3: pages from elsewhere are refused before the upgrade, whatever token they have."""

from __future__ import annotations

import pytest
from figures import Figure

from wsrecover.config import Origins
from wsrecover.errors import HandshakeRefused
from wsrecover.testing import LocalServer, local_server

LISTED = "https://app.example"


def bad_origins(host: str) -> list[str]:
    """Near misses of `LISTED`, and of the server's own host."""
    listed = [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://evilapp.example",
        "https://sub.app.example",
        "https://app.exampl",
        "https://app.example/",
        "https://app.example/path",
        "https://app.example?",
        "https://app.example#",
        "https://app.example.",
        "https://APP.example",
        "HTTPS://app.example",
        "https://app.example:443",
        "https://app.example@evil.example",
        "https://evil.example/https://app.example",
        "https://app.example, https://evil.example",
        "https://evil.example, https://app.example",
        "https://app.example%00.evil.example",
        "https:app.example",
        "//app.example",
        "app.example",
        "ftp://app.example",
        "file://",
        "null",
        "NULL",
        "*",
        "",
        "undefined",
    ]
    name, _, port = host.partition(":")
    own = [f"http://{name}", f"http://{name}:{int(port) % 65535 + 1}", f"http://{name}.evil.example:{port}"]
    return [
        *listed,
        *own,
        f"http://localhost:{port}",
        f"ws://{host}",
        f"http://{host}/",
        f"http://{host} "[:-1] + "0",
    ]


async def status(local: LocalServer, origin: str | None) -> int:
    headers = {"Authorization": f"Bearer {local.token()}"}
    if origin is not None:
        headers["Origin"] = origin
    try:
        async with local.stranger(headers=headers) as peer:
            await peer.send({"op": "hello", "client": "c1"})
            await peer.until("welcome")
            return 101
    except HandshakeRefused as refused:
        return refused.status


async def test_s04_a_page_from_elsewhere_is_refused_with_403(figure: Figure) -> None:
    async with local_server(origins=Origins(allowed=(LISTED,))) as local:
        host = local.url.removeprefix("ws://")
        answers = {origin: await status(local, origin) for origin in bad_origins(host)}
        for good in (LISTED, f"http://{host}", f"https://{host}", None):
            assert await status(local, good) == 101
    figure(
        "S04 A3", f"of {len(answers)} bad origins, accepted", sum(code == 101 for code in answers.values())
    )
    assert set(answers.values()) == {403}
    assert len(answers) >= 30


@pytest.mark.parametrize(("null", "missing"), [(True, False), (False, True)])
async def test_s04_null_and_missing_are_as_chosen(null: bool, missing: bool) -> None:
    async with local_server(origins=Origins(null=null, missing=missing)) as local:
        assert await status(local, "null") == (101 if null else 403)
        assert await status(local, None) == (101 if missing else 403)


async def test_s04_a_page_from_elsewhere_learns_nothing_of_its_token() -> None:
    async with local_server(origins=Origins(missing=False)) as local:
        for token in (local.token(), local.token(lifetime=-100), "nonsense"):
            with pytest.raises(HandshakeRefused) as refused:
                async with local.stranger(headers={"Authorization": f"Bearer {token}"}):
                    pass
            assert (refused.value.status, "origin" in refused.value.body) == (403, True)
