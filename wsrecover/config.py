"""Every setting of a server: frozen, checked where it is made, each default with its reason.

::

    Config ─┬─ timeouts             Timeouts   seconds
            ├─ tokens               Tokens     whose tokens are accepted
            ├─ origins              Origins    which pages may connect
            ├─ limits               Limits     bytes and counts
            ├─ tier                 Tier       of each user whose tier is not listed
            ├─ tiers                Tier       of each user of a tier, by its name
            ├─ retention            Retention  of each user's stream
            ├─ retention_broadcast  Retention  of each broadcast stream
            └─ contexts             Contexts   of each user's threads

A wrong value raises `ConfigError`, which names the field (`limits.message_bytes`) and what is accepted.
`load_config` reads the same tree from TOML: each class above is a table, each field a key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import attrs
import cattrs

from .config_access import Origins, Tier, Tokens, default_tiers, networks
from .config_checks import count, instance_of, one_of, seconds, size, text, tuple_of
from .errors import ConfigError

__all__ = [
    "Config",
    "Contexts",
    "Limits",
    "LogFormat",
    "LogLevel",
    "Origins",
    "Retention",
    "Tier",
    "Timeouts",
    "Tokens",
    "default_store",
    "load_config",
    "state_folder",
]

LogFormat: TypeAlias = Literal["console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

SECRET_BYTES: Final = 32
"""The shortest secret: RFC 7518, section 3.2, asks HS256 for a key of at least its hash's size."""

TABLES: Final = (
    "timeouts",
    "tokens",
    "origins",
    "limits",
    "tier",
    "retention",
    "retention_broadcast",
    "contexts",
)
"""The fields of `Config` that have fields of their own."""


def state_folder() -> Path:
    """Where a user's server keeps its data: `wsrecover` in `$XDG_STATE_HOME`, else in `~/.local/state`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "wsrecover"


def default_store() -> str:
    """SQLite in the user's state folder, so that what was acknowledged outlives the process by default."""
    return f"sqlite:{state_folder() / 'wsrecover.db'}"


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long things may take, all in seconds."""

    section: ClassVar[str] = "timeouts"

    handshake: float = attrs.field(default=5.0, validator=seconds())
    """From accept to the upgrade, and again to `hello`: a slow phone needs 2, a stranger gets 5."""
    heartbeat: float = attrs.field(default=25.0, validator=seconds())
    """Silence after which a `ping` is sent: under the 30 s in which NATs and proxies forget a connection."""
    heartbeat_grace: float = attrs.field(default=10.0, validator=seconds())
    """More silence after the ping: the link is dead (4003). Time for a mobile radio to wake up."""
    write_progress: float = attrs.field(default=10.0, validator=seconds())
    """No byte taken by the peer while there is something to send: too slow (4002)."""
    linger: float = attrs.field(default=60.0, validator=seconds(zero=True))
    """A session without connections and runs stays in memory: most drops are shorter than this."""
    run: float | None = attrs.field(default=None, validator=seconds(none=True))
    """The longest a run may take; None: agents work as long as they need."""
    delta_interval: float = attrs.field(default=0.025, validator=seconds(zero=True))
    """From one delta of a message to its next, which has all the text added meanwhile: 40 in a second look
    like writing, however fast the tokens come. 0: each `text` call is an event of its own. Where messages of
    one run alternate, each alternation is a delta: what was added first is told first."""
    command: float = attrs.field(default=30.0, validator=seconds())
    """The longest that the handler of an app's own command may take: longer work is an agent's."""
    drain: float = attrs.field(default=10.0, validator=seconds(zero=True))
    """From the order to stop until all connections are closed: the usual supervisors kill after 10 to 30."""
    drain_retry_after: float = attrs.field(default=1.0, validator=seconds(zero=True))
    """What clients wait at least when the server stops: a process that is replaced is back in a second."""
    drain_jitter: float = attrs.field(default=5.0, validator=seconds(zero=True))
    """The random part on top: 5,000 clients come back at 1,000 a second, a quarter of a core."""
    token_leeway: float = attrs.field(default=30.0, validator=seconds(zero=True))
    """A token counts until `exp` plus this: clocks differ, and a refresh takes a moment."""
    receipt: float = attrs.field(default=600.0, validator=seconds())
    """A broadcast's receipt waits for acknowledgements: who is away for longer was not there to hear it."""
    store: float = attrs.field(default=30.0, validator=seconds())
    """One call to the store: a busy disk's worst fsync takes seconds, more is a store that is gone."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one peer, one user and the process may take up. Sizes are in bytes of encoded JSON."""

    section: ClassVar[str] = "limits"

    message_bytes: int = attrs.field(default=64 * 1024, validator=size(1024))
    """One inbound message: commands are small; larger ones close with 1009."""
    event_bytes: int = attrs.field(default=1024 * 1024, validator=size(1024, 8_000_000))
    """One event: room for a tool's output. Larger ones are refused at emit. With what its frame adds, the
    largest is below the 8 MiB that clients take (SPEC.md, `MAX_TOTAL`)."""
    part_bytes: int = attrs.field(default=32 * 1024, validator=size(1024, 1024 * 1024))
    """A larger event goes out in parts of this size: a 10 KB/s link stays alive between two of them. Clients
    bound messages: with 1 MiB, and base64, what goes out at once is well below the Python client's 4 MiB."""
    page_bytes: int = attrs.field(default=256 * 1024, validator=size(4096))
    """One page of a replay: what a connection holds in memory to catch up."""
    page_events: int = attrs.field(default=500, validator=count(1))
    """Events of one page: about a millisecond of reading, so other tasks are not held up."""
    replay_pages: int = attrs.field(default=2, validator=count(1))
    """Pages of all replays that are read and sent at once, in turns: what is live waits for so many."""
    tail_events: int = attrs.field(default=256, validator=count(1))
    """The newest events that each stream keeps in memory, at times a sixteenth fewer: a drop of seconds
    resumes without the store."""
    tail_bytes: int = attrs.field(default=256 * 1024, validator=size(0))
    """The same in bytes."""
    tails_bytes: int = attrs.field(default=256 * 1024 * 1024, validator=size(0))
    """All tails of the process together: 1,000 streams of full tails. Less where `memory_bytes` runs out."""
    memory_bytes: int = attrs.field(default=1024 * 1024 * 1024, validator=size(1024 * 1024))
    """All that is held for users: full tails, a full journal and 20,000 connections, in a machine of 2 GB. As
    it fills up, load is shed: events that are not logged, tails of who is away, new connections (503)."""
    journal_units: int = attrs.field(default=10_000, validator=count(1))
    """What waits for its commit: a second of a busy server. A full journal makes agents wait."""
    journal_bytes: int = attrs.field(default=64 * 1024 * 1024, validator=size(4096))
    """The same in bytes; never more than a sixteenth of `memory_bytes`, as by default."""
    commands_in_flight: int = attrs.field(default=32, validator=count(1))
    """Unanswered commands of one user; more are answered `overloaded`."""
    frames_per_second: int = attrs.field(default=2_000, validator=count(1, 1_000_000))
    """Frames of one connection in the long run, whatever they say: a client's acks and pings are a few."""
    frames_burst: int = attrs.field(default=10_000, validator=count(256))
    """Frames at once, at least one full message; above it a connection is closed with 4004."""
    handshakes: int = attrs.field(default=1_000, validator=count(1))
    """Connections that are not upgraded yet, at once; more are answered 503."""
    tenant_connections: int = attrs.field(default=20_000, validator=count(1))
    """Connections of one tenant; more are closed with 4006: no tenant takes all of a server."""
    tenant_runs: int = attrs.field(default=5_000, validator=count(1))
    """Runs under way of one tenant; more are answered `overloaded`."""
    tenant_commands_per_second: int = attrs.field(default=5_000, validator=count(1, 1_000_000))
    """Commands of one tenant in the long run, and twice as many at once: half of what one process takes."""
    fresh_connects_per_second: int = attrs.field(default=2_000, validator=count(1, 1_000_000))
    """Connects without a position, and ten times as many at once; more are answered 503."""
    resumes_per_second: int = attrs.field(default=4_000, validator=count(1, 1_000_000))
    """Those with one, likewise: who was here comes before who was not. Half of what a core can do."""
    address_handshakes: int = attrs.field(default=500, validator=count(1))
    """Of those, of one address: half, so that no single one takes all; more are answered 429."""
    address_connects_per_second: int = attrs.field(default=1_000, validator=count(1, 1_000_000))
    """Connects of one address in the long run: a tenth of a core. Proxies and offices are one address."""
    address_connects_burst: int = attrs.field(default=5_000, validator=count(1))
    """Connects of one address at once: a proxy's clients come back together; more are answered 429."""
    head_bytes: int = attrs.field(default=16 * 1024, validator=size(1024))
    """The head of an upgrade request: a token, cookies and positions fit; more is answered 431."""


@attrs.frozen
class Retention:
    """How much of a stream is kept: events, bytes of their bodies, and seconds of age."""

    section: ClassVar[str] = "retention"

    events: int = attrs.field(default=10_000, validator=count(1))
    """Events: an hour of a busy agent."""
    bytes: int = attrs.field(default=16 * 1024 * 1024, validator=size(1024))
    """Bytes of their bodies: 10,000 events of a usual size fit four times."""
    age: float = attrs.field(default=24 * 3600.0, validator=seconds())
    """Seconds: who closes the lid at night resumes in the morning."""


@attrs.frozen(kw_only=True)
class Contexts:
    """How long the reduced state of a user's threads is kept, and when it is stored."""

    section: ClassVar[str] = "contexts"

    every: int = attrs.field(default=1_000, validator=count(1))
    """Events of a user after which a snapshot is stored, or fewer where the log holds little: what a restart
    reads again for one user then takes some milliseconds."""
    threads: int = attrs.field(default=100, validator=count(1))
    """Threads of a user, those used last; older ones are forgotten, but none with a run under way. A user's
    tier may say otherwise (`context_threads`)."""
    age: float = attrs.field(default=30 * 24 * 3600.0, validator=seconds())
    """Seconds since a thread was last used, after which it is forgotten likewise (`context_age`): a month's
    holiday."""
    memory_bytes: int = attrs.field(default=8 * 1024 * 1024, validator=size(0))
    """Contexts of one user that stay in memory between two uses; more are read from the store each time."""


def _broadcast() -> Retention:
    return Retention(events=1_000)


def _store(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if value != "memory" and not (
        isinstance(value, str) and value.removeprefix("sqlite:") not in ("", value)
    ):
        raise ConfigError("store", f"is {value!r}", "memory or sqlite:FILE")


def _secret(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, bytes) and len(value) >= SECRET_BYTES):
        problem = f"has {len(value)} bytes" if isinstance(value, bytes) else f"is a {type(value).__name__}"
        raise ConfigError("secret", problem, f"bytes, at least {SECRET_BYTES} of them")


def _tiers(_: object, __: attrs.Attribute[Any], value: object) -> None:
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if not named or not all(isinstance(tier, Tier) for tier in value.values()):  # type: ignore[attr-defined]  # `named` is the proof
        raise ConfigError("tiers", f"is {value!r}", "a table of tiers, each by its name: [tiers.free]")


@attrs.frozen(kw_only=True)
class Config:
    """All settings of one server. `evolve` gives a changed copy."""

    host: str = attrs.field(default="127.0.0.1", validator=text("a host name or an address"))
    """The address to listen at: this machine only, until somebody decides otherwise."""
    port: int = attrs.field(default=8765, validator=count(0, 65535))
    """The port; 0 takes any free one, and `ready` tells which."""
    store: str = attrs.field(factory=default_store, validator=_store)
    """`memory` or `sqlite:FILE`; the default is `default_store()`: a promise of durability needs a file."""

    secret: bytes | None = attrs.field(default=None, repr=False, validator=_secret)
    """What tokens are signed with (HS256). This or `secret_file`, or the public keys of `tokens.jwks`."""
    secret_file: str | None = attrs.field(default=None, validator=text("the name of a file", none=True))
    """A file that holds the secret, so that it stands neither in a command line nor in a config file."""

    tls_certificate: str | None = attrs.field(
        default=None, validator=text("the name of a PEM file", none=True)
    )
    """A PEM file with the certificate chain; None: plain `ws://`, for a proxy in front or this machine."""
    tls_key: str | None = attrs.field(default=None, validator=text("the name of a PEM file", none=True))
    """A PEM file with the certificate's key."""

    trusted_proxies: tuple[str, ...] = attrs.field(default=(), converter=tuple_of, validator=networks)
    """The networks of the proxies in front, whose `X-Forwarded-For` says whose connection it is: limits by
    address and the audit log go by that. None listed: it is not looked at, for anybody can write it."""

    log_format: LogFormat = attrs.field(default="console", validator=one_of(get_args(LogFormat)))
    """`console` for a reader, `json` (one object per line) for a collector."""
    log_level: LogLevel = attrs.field(default="info", validator=one_of(get_args(LogLevel)))
    """The least severe level that is logged."""

    timeouts: Timeouts = attrs.field(factory=Timeouts, validator=instance_of(Timeouts))
    tokens: Tokens = attrs.field(factory=Tokens, validator=instance_of(Tokens))
    origins: Origins = attrs.field(factory=Origins, validator=instance_of(Origins))
    limits: Limits = attrs.field(factory=Limits, validator=instance_of(Limits))
    tier: Tier = attrs.field(factory=Tier, validator=instance_of(Tier))
    """Of each user whose token names no tier, or none of `tiers`: who sells no tiers wants no walls."""
    tiers: dict[str, Tier] = attrs.field(factory=default_tiers, validator=_tiers)
    """By name; the defaults are those of `default_tiers`."""
    retention: Retention = attrs.field(factory=Retention, validator=instance_of(Retention))
    """Of each user's stream."""
    retention_broadcast: Retention = attrs.field(factory=_broadcast, validator=instance_of(Retention))
    """Of each broadcast stream: fewer events, for everybody reads them."""
    contexts: Contexts = attrs.field(factory=Contexts, validator=instance_of(Contexts))
    """Of each user's threads."""

    def __attrs_post_init__(self) -> None:
        if self.secret is not None and self.secret_file is not None:
            raise ConfigError("secret_file", "is given beside secret", "one of the two")
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise ConfigError(missing, "is missing", "tls_certificate and tls_key together, or neither")
        if self.limits.event_bytes > self.retention.bytes:
            accepted = f"at least limits.event_bytes, which is {self.limits.event_bytes}"
            raise ConfigError("retention.bytes", f"is {self.retention.bytes}", accepted)

    @property
    def store_path(self) -> Path | None:
        """The store's file, or None for a store in memory."""
        return None if self.store == "memory" else Path(self.store.removeprefix("sqlite:")).expanduser()

    def tier_of(self, name: str | None) -> Tier:
        """The limits of a user whose token names this tier."""
        return self.tier if name is None else self.tiers.get(name, self.tier)

    def retention_of(self, tier: Tier) -> Retention:
        """How much of the log of a user of this tier is kept: at most `retention`, at least one event."""
        kept = self.retention
        return Retention(
            events=min(kept.events, tier.log_events or kept.events),
            bytes=min(kept.bytes, max(tier.log_bytes or kept.bytes, self.limits.event_bytes)),
            age=min(kept.age, tier.log_age or kept.age),
        )

    def contexts_of(self, tier: Tier) -> tuple[float, int]:
        """The seconds for which a user of this tier keeps a thread's context, and of how many threads."""
        return tier.context_age or self.contexts.age, tier.context_threads or self.contexts.threads

    def evolve(self, **changes: Any) -> Config:
        """A copy with other values, checked like a new one; an unknown name raises `ConfigError`."""
        for name in changes:
            _known(name, Config, "")
        return attrs.evolve(self, **changes)


def load_config(path: str | Path) -> Config:
    """The settings in a TOML file. An unknown key or a wrong type raises `ConfigError`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Some editors begin a file with its mark.
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("config", f"{path} cannot be read: {why}", "a readable TOML file") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", f"{path} is not TOML: {error}", "TOML 1.0") from error
    if "secret" in tree:
        raise ConfigError(
            "secret", "stands in a config file", "secret_file, the name of a file that holds it"
        )
    for section in TABLES:
        if not isinstance(tree.get(section, {}), dict):
            raise ConfigError(section, f"is {tree[section]!r}", f"a table, [{section}]")
    tiers = tree.get("tiers", {})
    if not isinstance(tiers, dict) or not all(isinstance(tier, dict) for tier in tiers.values()):
        raise ConfigError("tiers", f"is {tiers!r}", "a table of tiers, each by its name: [tiers.free]")
    defaults = {name: attrs.asdict(tier) for name, tier in default_tiers().items()}
    tree["tiers"] = defaults | {name: defaults.get(name, {}) | tier for name, tier in tiers.items()}
    try:
        return _converter().structure(tree, Config)
    except cattrs.BaseValidationError as error:
        raise next(_problems(error, "")) from error


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    # Values pass as they are: cattrs would make 3 of "3", while every field has a validator that refuses it.
    for kind in (str, int, float, bool):
        converter.register_structure_hook(kind, lambda value, _: value)
    as_it_is = {LogFormat, LogLevel, tuple[str, ...]}
    converter.register_structure_hook_func(lambda kind: kind in as_it_is, lambda value, _: value)
    return converter


def _problems(error: BaseException, path: str) -> Iterator[ConfigError]:
    """What cattrs found wrong in the table `path`, as errors that name the whole path."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        for name in sorted(error.extra_fields):
            yield _unknown(name, error.cl, path)
    elif isinstance(error, cattrs.ClassValidationError):
        located, others = error.group_exceptions()
        for inner, note in located:
            yield from _problems(inner, f"{path}.{note.name}" if path else note.name)
        for other in others:
            yield from _problems(other, path)
    elif isinstance(error, cattrs.IterableValidationError):
        for inner, item in error.group_exceptions()[0]:
            yield from _problems(inner, f"{path}.{item.index}")
    elif isinstance(error, ConfigError):
        # A validator names its class's table, but two tables are of one class.
        field = f"{path}.{error.field.rpartition('.')[2]}" if path else error.field
        yield ConfigError(field, error.problem, error.accepted)
    else:
        raise error


def _known(name: str, cls: type, path: str) -> None:
    if name not in attrs.fields_dict(cls):
        raise _unknown(name, cls, path)


def _unknown(name: str, cls: type, path: str) -> ConfigError:
    known = ", ".join(field for field in attrs.fields_dict(cls) if field != "secret")
    return ConfigError(f"{path}.{name}" if path else name, "is not a setting", known)
