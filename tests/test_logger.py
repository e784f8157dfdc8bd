"""A log that cannot be written costs its lines, and nobody anything else."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from wsrecover.errors import HandshakeRefused
from wsrecover.logger import get_logger
from wsrecover.testing import local_server


class Disk:
    """Where lines go, as a program's own structlog configuration may have it: full, then free again."""

    def __init__(self) -> None:
        self.full = False
        self.lines: list[dict[str, Any]] = []

    def __call__(
        self, _: object, method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append({"method": method, **line})
        raise structlog.DropEvent


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    before = structlog.get_config()
    disk = Disk()
    structlog.configure(processors=[disk], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    monkeypatch.setattr("wsrecover.logger._lost", 0)
    yield disk
    structlog.configure(**before)


def test_lines_that_are_lost_are_counted_in_all_later_ones(disk: Disk) -> None:
    log, another = get_logger("test", always="this"), get_logger("another")
    log.info("before")
    disk.full = True
    log.info("first")
    another.warning("second")
    disk.full = False
    another.debug("filtered out")
    log.error("third", number=3)
    another.info("fourth")
    assert disk.lines == [
        {"method": "info", "event": "before", "always": "this"},
        {"method": "error", "event": "third", "always": "this", "number": 3, "lines_lost": 2},
        {"method": "info", "event": "fourth", "lines_lost": 2},
    ]


def test_an_exception_is_logged_with_what_was_being_handled(disk: Disk) -> None:
    log = get_logger("test")
    try:
        raise ArithmeticError("odd")
    except ArithmeticError:
        log.exception("failed")
    (line,) = disk.lines
    assert line["exc_info"]


async def test_bad_input_a_server_without_room_for_its_log_serves_on(disk: Disk) -> None:
    async with local_server() as local, local.peer("ada") as ada:
        await ada.until("live")
        disk.full = True
        for _ in range(3):
            async with local.peer("eve") as eve:  # Told in a line of the audit.
                await eve.until("live")
            with pytest.raises(HandshakeRefused):
                async with local.peer("eve", token="none"):  # Likewise.
                    pass
        disk.full = False
        disk.lines.clear()
        async with local.peer("eve") as eve:
            await eve.until("live")
        assert [line["lines_lost"] for line in disk.lines if line["event"] == "accepted"] == [6]
        await local.server.publish("acme", "ada", "noted", {})
        await ada.until("event", type="noted")
