"""The floors of the house: who may import whom, which library has which door, how big a file may grow, and
what a line of the log is called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsrecover

PACKAGE = Path(wsrecover.__file__).parent

FLOORS = {
    "errors": 0,
    "config": 0,
    "config_access": 0,
    "config_checks": 0,
    "interpreter": 0,
    "logger": 0,
    "logs": 1,
    "protocol": 1,
    "streams": 2,
    "access": 2,
    "transport": 2,
    "agents": 3,
    "session": 4,
    "ops": 5,
    "client": 5,
    "manager": 5,
    "web": 5,
    "server": 6,
    "compiled": 6,
    "testing": 6,
    "cli": 7,
    "demo": 7,
}

NEIGHBOURS = {
    ("config", "config_access"),
    ("config", "config_checks"),
    ("config", "errors"),
    ("config_access", "config_checks"),
    ("config_checks", "errors"),
    ("cli", "demo"),
    ("testing", "server"),
}
"""Who may look across its own floor: settings are checked and a wrong one is an error, `wsrecover demo` is a
command, and a test's server is a server."""

ONLY_BELOW = {"client": {"errors", "config", "logger", "protocol", "transport"}}
"""Rooms that use less than their floor allows: a client does not need a server to be installed around it."""

DOORS = {
    "trio_websocket": ("transport/engine.py",),
    "wsproto": ("transport/engine.py",),
    "apsw": ("streams/sqlite",),
    "joserfc": ("access/keys.py",),
    "httpx": ("access/jwks.py",),
    "structlog": ("logger.py", "logs.py", "server.py"),
    "cyclopts": ("cli",),
    "rich": ("cli", "demo/"),
}
"""The only places, by the beginning of their path, that may import a library."""

PURE = frozenset(
    (
        "__future__",
        "attrs",
        "base64",
        "binascii",
        "bisect",
        "builtins",
        "cattrs",
        "collections",
        "datetime",
        "enum",
        "functools",
        "hashlib",
        "json",
        "jsonpatch",
        "math",
        "orjson",
        "re",
        "traceback",
        "types",
        "typing",
        "uuid",
    )
)
"""What the protocol may use beside its own: nothing that reads or waits, no clock, no randomness, so that it
can be tested whole, byte by byte. (`datetime` and `uuid` are types in a schema.)"""

LEVELS = frozenset({"debug", "info", "warning", "error", "exception"})
EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""What a line of the log is called, for those who search and count by it; what it is about are its fields."""

FILE_LINES = 400
FUNCTION_LINES = 45


def imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every module that the code imports, as a path; `package` is the one that the code stands in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *(node.module.split(".") if node.module else ()))
            # `from wsrecover import config` names a room only in its last word.
            yield from ((*module, alias.name) for alias in node.names) if len(module) == 1 else (module,)


def stray_imports(path: str, source: str) -> Iterator[str]:
    """What the module at `path`, relative to the package, imports against the rules."""
    parts = ("wsrecover", *path.removesuffix(".py").split("/"))
    room = parts[1]
    for module in imports(ast.parse(source), parts[:-1]):
        top, target = module[0], module[1] if len(module) > 1 else ""
        if top == "wsrecover" and target != room:
            below = target in FLOORS and FLOORS[target] < FLOORS[room]
            if not (below and target in ONLY_BELOW.get(room, FLOORS)) and (room, target) not in NEIGHBOURS:
                yield f"{path} imports {'.'.join(module)}"
        elif top in DOORS and not path.startswith(DOORS[top]):
            yield f"{path} imports {top}, whose door is {' or '.join(DOORS[top])}"
        elif room == "protocol" and top not in PURE | {"wsrecover"}:
            yield f"{path} imports {top}, and the protocol is sans-IO"


def long_functions(path: str, source: str) -> Iterator[str]:
    """Functions whose code, without the docstring, is too long to be read at once."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > FUNCTION_LINES:
                yield f"{path}: {node.name} has {lines} lines"


def odd_lines(path: str, source: str) -> Iterator[str]:
    """Loggers and lines of the log that are not called as all others."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("get_logger"))) if name != "log":
                yield f"{path} calls its logger {name}"
            case ast.Call(ast.Attribute(ast.Name("log"), level), [event, *_]) if level in LEVELS:
                named = isinstance(event, ast.Constant) and EVENT.fullmatch(str(event.value))
                if not (named or isinstance(event, ast.Name)):
                    yield f"{path} logs {ast.unparse(event)}"


def modules() -> list[tuple[str, str]]:
    return [
        (file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
    ]


def test_every_module_has_a_floor() -> None:
    rooms = {path.split("/")[0].removesuffix(".py") for path, _ in modules()} - {"__init__", "__main__"}
    assert rooms - set(FLOORS) == set()


def test_a_module_imports_only_its_own_room_and_the_floors_below() -> None:
    stray = [
        problem
        for path, source in modules()
        if path not in ("__init__.py", "__main__.py")
        for problem in stray_imports(path, source)
    ]
    assert stray == []


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {path: lines for path, source in modules() if (lines := source.count("\n")) > FILE_LINES}
    assert long == {}


def test_no_function_is_longer_than_a_screen() -> None:
    assert [problem for path, source in modules() for problem in long_functions(path, source)] == []


def test_lines_of_the_log_are_called_alike() -> None:
    assert [problem for path, source in modules() for problem in odd_lines(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/codec.py", "import trio"),
        ("protocol/codec.py", "from time import monotonic"),
        ("protocol/backoff.py", "import random"),
        ("protocol/backoff.py", "from os import urandom"),
        ("protocol/backoff.py", "import structlog"),
        ("protocol/codec.py", "from ..streams.store import Store"),
        ("protocol/codec.py", "from .. import server"),
        ("streams/journal.py", "from ..access.principal import Principal"),
        ("streams/journal.py", "def late():\n    from wsrecover.session import registry"),
        ("streams/memory.py", "import apsw"),
        ("transport/listener.py", "from wsproto.events import Ping"),
        ("client/session.py", "from ..agents.app import App"),
        ("client/session.py", "import wsrecover"),
        ("session/session.py", "from wsrecover import App"),
        ("server.py", "from .testing.link import LossyProxy"),
        ("config.py", "from .protocol import frames"),
    ],
)
def test_a_stray_import_is_found(path: str, source: str) -> None:
    assert len(list(stray_imports(path, source))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/codec.py", "from .frames import Hello\nfrom ..errors import FrameError\nimport orjson"),
        ("streams/sqlite.py", "import apsw\nimport trio\nfrom ..protocol.cursor import Position"),
        ("transport/engine.py", "from trio_websocket import WebSocketConnection"),
        ("session/session.py", "from .. import errors\nfrom ..agents.run import Run"),
        ("cli/serve.py", "from ..demo import show\nfrom ..server import serve\nimport cyclopts"),
    ],
)
def test_a_proper_import_is_left_alone(path: str, source: str) -> None:
    assert list(stray_imports(path, source)) == []


def test_a_long_function_is_found() -> None:
    body = "\n".join(f"    x = {n}" for n in range(FUNCTION_LINES))
    docstring = '    """Long\n    and\n    dull."""\n'
    assert list(long_functions("x.py", f"def f():\n{body}")) == ["x.py: f has 46 lines"]
    assert list(long_functions("x.py", f"def f():\n{docstring}{body}")) == ["x.py: f has 46 lines"]


@pytest.mark.parametrize(
    "source",
    [
        'log.warning("trim failed", error="")',
        'log.info("Ready")',
        'log.exception(f"of_{name}")',
        "_log = get_logger(__name__)",
    ],
)
def test_an_odd_line_of_the_log_is_found(source: str) -> None:
    assert len(list(odd_lines("x.py", source))) == 1


@pytest.mark.parametrize(
    "source", ['log = get_logger(__name__)\nlog.debug("trim_failed")', "log.info(what)", 'math.log("a b")']
)
def test_a_proper_line_of_the_log_is_left_alone(source: str) -> None:
    assert list(odd_lines("x.py", source)) == []
