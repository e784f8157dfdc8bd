"""Settings: what is accepted, what is refused, and how the refusal reads."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from wsrecover import config, config_access
from wsrecover.config import (
    TABLES,
    Config,
    Limits,
    Origins,
    Retention,
    Tier,
    Timeouts,
    Tokens,
    default_store,
    load_config,
)
from wsrecover.errors import ConfigError

CLASSES = (Config, Limits, Origins, Retention, Tier, Timeouts, Tokens)


def written(folder: Path, text: str) -> Path:
    file = folder / "wsrecover.toml"
    file.write_text(text, encoding="utf-8")
    return file


class TestEveryField:
    @pytest.mark.parametrize("cls", CLASSES)
    def test_has_a_validator(self, cls: type[attrs.AttrsInstance]) -> None:
        assert [field.name for field in attrs.fields(cls) if field.validator is None] == []

    @pytest.mark.parametrize("cls", CLASSES)
    def test_refuses_a_value_of_another_type(self, cls: type[attrs.AttrsInstance]) -> None:
        for field in attrs.fields(cls):
            with pytest.raises(ConfigError) as caught:
                cls(**{field.name: object()})
            assert caught.value.field.rpartition(".")[2] == field.name
            assert caught.value.accepted

    @pytest.mark.parametrize("cls", [Limits, Timeouts, Retention, Tier])
    def test_does_not_take_true_for_a_number(self, cls: type[attrs.AttrsInstance]) -> None:
        for field in attrs.fields(cls):
            with pytest.raises(ConfigError):
                cls(**{field.name: True})

    @pytest.mark.parametrize("module", [config, config_access])
    def test_of_a_table_says_why_it_has_its_default(self, module: ModuleType) -> None:
        tree = ast.parse(inspect.getsource(module))
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for statement, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(
                    statement.annotation
                ):
                    explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert explained or statement.target.id in TABLES, ast.unparse(statement)  # type: ignore[union-attr]  # a class field is a name

    def test_that_is_a_table_is_known_as_one(self) -> None:
        defaults = Config(store="memory")
        assert (
            tuple(f.name for f in attrs.fields(Config) if attrs.has(type(getattr(defaults, f.name))))
            == TABLES
        )


class TestConfig:
    def test_keeps_its_log_in_the_users_state_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert Config().store == default_store() == f"sqlite:{tmp_path}/wsrecover/wsrecover.db"
        assert Config().store_path == tmp_path / "wsrecover" / "wsrecover.db"

    @pytest.mark.parametrize("base", ["", "relative/folder"])
    def test_ignores_a_state_folder_that_is_not_absolute(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_STATE_HOME", base)
        assert config.state_folder() == tmp_path / ".local" / "state" / "wsrecover"

    def test_in_memory_has_no_store_path(self) -> None:
        assert Config(store="memory").store_path is None

    def test_never_shows_its_secret(self) -> None:
        assert "hush" not in repr(Config(secret=b"hush" * 8))

    def test_evolves_into_a_checked_copy(self) -> None:
        before = Config(port=1)
        assert before.evolve(port=2).port == 2
        assert before.port == 1
        with pytest.raises(ConfigError, match=r"^port: is 70000; accepted: a whole number from 0 to 65535$"):
            before.evolve(port=70_000)
        with pytest.raises(ConfigError, match=r"^prot: is not a setting; accepted: host, port,"):
            before.evolve(prot=2)

    @pytest.mark.parametrize(
        ("settings", "field"),
        [
            ({"store": "sqlite:"}, "store"),
            ({"store": "redis://here"}, "store"),
            ({"secret": b"short"}, "secret"),
            ({"secret": b"x" * 32, "secret_file": "there"}, "secret_file"),
            ({"tls_certificate": "chain.pem"}, "tls_key"),
            ({"tls_key": "key.pem"}, "tls_certificate"),
            ({"retention": Retention(bytes=4096)}, "retention.bytes"),
        ],
    )
    def test_refuses_what_cannot_work(self, settings: dict[str, Any], field: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Config(**settings)
        assert caught.value.field == field
        assert "short" not in str(caught.value)


class TestLoading:
    def test_a_byte_order_mark_is_no_setting(self, tmp_path: Path) -> None:
        assert load_config(written(tmp_path, "\ufeffport = 1")).port == 1

    def test_reads_every_table(self, tmp_path: Path) -> None:
        file = written(
            tmp_path,
            """
            host = "0.0.0.0"
            store = "memory"
            log_format = "json"
            [timeouts]
            run = 600
            drain = 2.5
            [limits]
            message_bytes = 2048
            [retention]
            age = 60
            [retention_broadcast]
            events = 7
            """,
        )
        expected = Config(
            host="0.0.0.0",
            store="memory",
            log_format="json",
            timeouts=Timeouts(run=600, drain=2.5),
            limits=Limits(message_bytes=2048),
            retention=Retention(age=60),
            retention_broadcast=Retention(events=7),
        )
        assert load_config(file) == expected

    def test_of_an_empty_file_gives_the_defaults(self, tmp_path: Path) -> None:
        assert load_config(written(tmp_path, "")) == Config()

    @pytest.mark.parametrize(
        ("text", "field", "accepted"),
        [
            ("prot = 1", "prot", "host, port, store"),
            ('port = "1"', "port", "from 0 to 65535"),
            ("port = 1.0", "port", "from 0 to 65535"),
            ('log_format = "xml"', "log_format", "console or json"),
            ("log_level = 3", "log_level", "debug or info"),
            ("limits = 3", "limits", "[limits]"),
            ("[limits]\nmessage_byte = 1", "limits.message_byte", "message_bytes"),
            ("[limits]\nmessage_bytes = 1", "limits.message_bytes", "≥ 1024"),
            ("[limits]\nmessage_bytes = 9007199254740992", "limits.message_bytes", "at most 2^53-1"),
            ("[tiers.free]\ncommands_burst = 9223372036854775807", "tiers.free.commands_burst", "2^53-1"),
            ("[timeouts]\nheartbeat = 9223372036854775807", "timeouts.heartbeat", "at most 2^53-1"),
            ("[limits]\nevent_bytes = 8388608", "limits.event_bytes", "from 1024 to 8000000"),
            ("[limits]\npart_bytes = 2097152", "limits.part_bytes", "from 1024 to 1048576"),
            ("[timeouts]\nrun = true", "timeouts.run", "seconds > 0, or None (in a file: left out)"),
            ("[timeouts]\ndrain = nan", "timeouts.drain", "seconds ≥ 0"),
            ("[retention]\nage = 0", "retention.age", "seconds > 0"),
            ("[retention_broadcast]\nevents = 0", "retention_broadcast.events", "≥ 1"),
            ("[retention_broadcast]\neons = 1", "retention_broadcast.eons", "events, bytes, age"),
            ('secret = "in plain sight"', "secret", "secret_file"),
            ('trusted_proxies = "10.0.0.0/8"', "trusted_proxies", "a list of networks"),
            ('trusted_proxies = ["10.0.0.1/8"]', "trusted_proxies", "10.0.0.0/8"),
            ('trusted_proxies = ["proxy.example"]', "trusted_proxies", "10.0.0.0/8"),
            ("trusted_proxies = [10]", "trusted_proxies", "10.0.0.0/8"),
            ("port =", "config", "TOML"),
        ],
    )
    def test_names_the_field_and_what_is_accepted(
        self, tmp_path: Path, text: str, field: str, accepted: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(written(tmp_path, text))
        assert caught.value.field == field
        assert accepted in caught.value.accepted
        assert "plain sight" not in str(caught.value)

    def test_of_an_absent_file_says_which(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^config: .*absent\.toml cannot be read"):
            load_config(tmp_path / "absent.toml")

    def test_of_a_file_that_is_no_text_says_so(self, tmp_path: Path) -> None:
        file = tmp_path / "noise.toml"
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"noise\.toml cannot be read"):
            load_config(file)
