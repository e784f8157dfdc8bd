"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import attrs
from cyclopts import Parameter, Token

from wsrecover.agents.ending import errors_in
from wsrecover.client.entry import check_url
from wsrecover.config import Config, LogFormat, load_config, state_folder
from wsrecover.errors import ConfigError, FrameError
from wsrecover.protocol.decode import parse_strict

from .exits import USAGE, Failure, token_refused

__all__ = [
    "DEFAULT_URL",
    "DEV_TOKEN",
    "AnswerTimeout",
    "Audience",
    "CommandId",
    "ConfigFile",
    "Host",
    "Issuer",
    "Jwks",
    "LogFormatOption",
    "OperatorIssuer",
    "Origin",
    "Port",
    "SecretFile",
    "Store",
    "TokenFile",
    "TokenText",
    "Url",
    "check_files",
    "command_line",
    "dev_file",
    "json_object",
    "naming_source",
    "settings",
    "token_source",
    "whole",
]

DEFAULT_URL: Final = f"ws://127.0.0.1:{Config(store='memory').port}"
DEV_TOKEN: Final = "dev.token"  # noqa: S105 - the name of a file, not a token
TOKEN_VARIABLE: Final = "WSRECOVER_TOKEN"  # noqa: S105 - the variable's name, not a token


def whole(_: object, tokens: Sequence[Token]) -> int:
    """A whole number as it was typed; cyclopts itself would round 2.9. Raises `ValueError`."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _check_url(_: object, url: str) -> None:
    try:
        check_url(url)
    except ConfigError as error:
        raise Failure(f"--url {error.problem}; accepted: {error.accepted}", USAGE) from error


Host: TypeAlias = Annotated[str | None, Parameter(help="Address to listen at. [default: 127.0.0.1]")]
Port: TypeAlias = Annotated[
    int | None, Parameter(converter=whole, help="Port to listen at; 0 takes any free one. [default: 8765]")
]
Store: TypeAlias = Annotated[
    str | None,
    Parameter(help="memory, or sqlite:FILE. [default: SQLite in the user's state folder]"),
]
SecretFile: TypeAlias = Annotated[
    Path | None,
    Parameter(
        help="File with the secret of 32 bytes or more that signs tokens. [default: $WSRECOVER_SECRET]"
    ),
]
ConfigFile: TypeAlias = Annotated[
    Path | None, Parameter(help="TOML file with settings; options given here win over it.")
]
LogFormatOption: TypeAlias = Annotated[
    LogFormat | None, Parameter(help="Log for a reader or for a collector. [default: console]")
]
Url: TypeAlias = Annotated[str, Parameter(validator=_check_url, help="Where the server is.")]
Jwks: TypeAlias = Annotated[
    str | None,
    Parameter(help="File or https URL of a JSON Web Key Set, whose keys may sign tokens beside the secret."),
]
Issuer: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(negative=(), show_default=False, help="An accepted `iss`; may be given several times."),
]
OperatorIssuer: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        negative=(), show_default=False, help="An `iss` whose tokens may carry the role operator; likewise."
    ),
]
Origin: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        negative=(),
        show_default=False,
        help="A page's origin, such as https://app.example, that may connect beside those of the same host; "
        "likewise.",
    ),
]
Audience: TypeAlias = Annotated[str | None, Parameter(help="What `aud` must be or contain.")]
TokenText: TypeAlias = Annotated[
    str | None,
    Parameter(help=f"The token itself; better kept out of sight in a file. [default: ${TOKEN_VARIABLE}]"),
]
TokenFile: TypeAlias = Annotated[
    Path | None,
    Parameter(
        help=f"File with the token, read anew for each connection, instead of --token; it wins over "
        f"${TOKEN_VARIABLE}. [default: that of `wsrecover dev`]"
    ),
]
CommandId: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--id",
        help="The command's id. Repeated with the same one, within 10 minutes, it takes effect once. "
        "[default: a random one]",
    ),
]
AnswerTimeout: TypeAlias = Annotated[
    float | None,
    Parameter(
        name="--timeout", help="Seconds to wait for the answer. [default: as long as the server takes]"
    ),
]


def settings(
    config_file: Path | None, *, tables: Mapping[str, Mapping[str, Any]] | None = None, **given: Any
) -> Config:
    """The settings of the file, if there is one, with the options that were given; `tables` are those of
    its tables, by name. None and the empty tuple stand for an option that was not given."""
    try:
        config = load_config(config_file) if config_file else Config()
    except ConfigError as error:
        problem = error.problem if error.field == "config" else f"{config_file}: {error}"
        raise Failure(f"config: {problem}", USAGE) from error
    for table, options in (tables or {}).items():
        said = {name: value for name, value in options.items() if value not in (None, ())}
        config = config.evolve(**{table: attrs.evolve(getattr(config, table), **said)})
    return config.evolve(**{name: value for name, value in given.items() if value is not None})


def check_files(config: Config) -> None:
    """Raise `ConfigError` that names the setting and the file where one cannot be read."""
    for name in ("tls_certificate", "tls_key"):
        file = getattr(config, name)
        try:
            if file is not None:
                Path(file).open("rb").close()
        except OSError as error:
            raise ConfigError(name, f"{file} cannot be read: {error.strerror}", "a readable file") from error


def dev_file(name: str) -> Path:
    """A file that `wsrecover dev` keeps for itself and for the commands that talk to it."""
    return state_folder() / name


class TokenFromFile:
    """Reads the token each time it is asked for, so that whoever refreshes the file refreshes the session."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self) -> str:
        """The token. Raises `Failure` where the file holds none, or cannot be read."""
        try:
            token = self.file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise Failure(f"the token file {self.file} cannot be read: {error.strerror}", USAGE) from error
        except UnicodeDecodeError as error:
            raise Failure(f"the token file {self.file} cannot be read: it is no ASCII text", USAGE) from error
        _check_token(token, f"the token file {self.file}")
        return token


def _check_token(token: str, place: str) -> None:
    if not token:
        raise Failure(f"{place} is empty", USAGE)
    if not (token.isascii() and token.isprintable()):
        raise Failure(f"{place} is no token; accepted: printable ASCII, without a line end", USAGE)


def token_source(token: str | None, token_file: Path | None) -> str | TokenFromFile:
    """What was given, else what the environment has, else the token that `wsrecover dev` left.

    Raises `Failure` where there is none, so that nobody waits for a session that can never begin.
    """
    if token is not None and token_file is not None:
        raise Failure("--token and --token-file are both given: one of them, please", USAGE)
    for text, place in ((token, "--token"), (os.environ.get(TOKEN_VARIABLE), f"${TOKEN_VARIABLE}")):
        if text is not None and token_file is None:
            _check_token(text, place)
            return text
    if token_file is not None or dev_file(DEV_TOKEN).exists():
        source = TokenFromFile(token_file or dev_file(DEV_TOKEN))
        source()
        return source
    raise Failure(
        f"there is no token: give --token-file FILE or set {TOKEN_VARIABLE}.\n"
        "Sign one with `wsrecover token`, or start `wsrecover dev`, which leaves one.",
        USAGE,
    )


@contextmanager
def naming_source(source: str | TokenFromFile, token: str | None) -> Iterator[None]:
    """Say of a token that is refused in the block where it came from, unless it was typed as `token`."""
    try:
        yield
    except Exception as error:
        if token is None and any(map(token_refused, errors_in(error))):
            place = f"${TOKEN_VARIABLE}" if isinstance(source, str) else f"the file {source.file}"
            error.add_note(f"It came from {place}.")
        raise


def json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object that was typed as `name`."""
    try:
        value = parse_strict(text)
    except FrameError as error:
        raise Failure(f"{name}: {error}", USAGE) from error
    if not isinstance(value, dict):
        raise Failure(f'{name} must be a JSON object, such as {{"text": "hello"}}', USAGE)
    return value


def command_line(*words: str | os.PathLike[str]) -> str:
    """A command as one types it."""
    return shlex.join(os.fspath(word) for word in words)
