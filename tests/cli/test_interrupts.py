"""Ctrl-C ends a command wherever it comes, also where Python would drop the exception."""

import signal
import weakref
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.lowlevel
import trio.testing

from wsrecover.cli import interrupts
from wsrecover.cli.exits import INTERRUPTED, Failure, finish


class Anything:
    """Something that a weak reference may point at."""


def in_a_callback_that_may_not_raise() -> None:
    thing = Anything()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def in_a_generator_that_is_collected() -> None:
    def generate() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)

    generator = generate()
    next(generator)
    del generator


def anywhere() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "interrupt", [anywhere, in_a_callback_that_may_not_raise, in_a_generator_that_is_collected]
)
def test_it_ends_a_command_wherever_it_comes(interrupt: Callable[[], None]) -> None:
    left = []

    async def command() -> int:
        with trio.move_on_after(5):
            interrupt()
            try:
                await trio.sleep_forever()
            finally:
                left.append("in order")
        return 0

    assert finish(lambda: interrupts.run(command)) == INTERRUPTED
    assert left == ["in order"]


def test_a_second_one_is_raised_at_once() -> None:
    async def command() -> int:
        receiver = signal.getsignal(signal.SIGINT)
        anywhere()
        with trio.CancelScope(shield=True):  # As somebody who takes its time to leave.
            while signal.getsignal(signal.SIGINT) is receiver:
                await trio.lowlevel.checkpoint()
            anywhere()
        raise AssertionError("it went on")

    assert finish(lambda: interrupts.run(command)) == INTERRUPTED


def test_who_is_to_ignore_it_does() -> None:
    async def command() -> int:
        anywhere()
        await trio.testing.wait_all_tasks_blocked()
        return 7

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert finish(lambda: interrupts.run(command)) == 7
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_command_raises_is_told_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    async def command() -> int:
        raise Failure("this cannot be done", 2)

    assert finish(lambda: interrupts.run(command)) == 2
    assert capsys.readouterr().err == "wsrecover: this cannot be done\n"
