"""Settings: what may be set, which source wins, and what is said of mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import configuration as config
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest

# Each setting: its default, a value for the file, one for the command line.
KEYS: dict[str, tuple[Any, Any, Any]] = {
    "host": ("127.0.0.1", "0.0.0.0", "::1"),
    "port": (8081, 1, 0),
    "admin_host": ("127.0.0.1", "localhost", "::1"),
    "admin_port": (8082, 2, 65535),
    "llama_url": ("http://127.0.0.1:8080", "http://gpu:1", "https://[::1]:2/base"),
    "listen": (None, "tcp:1", "unix:b.sock"),
    "admin_listen": (None, "tcp:1", "unix:b.sock"),
    "admin_hosts": ((), ["bioproxy", "b.lan"], ["c"]),
    "api_key_file": (None, "keys", "../keys"),
    "llama_ca_file": (None, "ca.pem", "../ca.pem"),
    "llama_api_key_file": (None, "key", "../key"),
    "model": (None, "a.gguf", "../b.gguf"),
    "llama_server": (None, "llama-server", "llama-server-cuda"),
    "llama_args": ((), ["-c", "8192"], "-c 4096 --alias 'two words'"),
    "upstream_timeout": (30.0, 1, 2.5),
    "prefixes": ({}, {"@a": "f.txt"}, {"@a": "c.txt"}),
    "poll_interval": (2.0, 0.05, 5),
    "warmup": (True, False, True),
    "warmup_chunk": (512, 1, 64),
    "save_conversations": (True, False, True),
    "learn": (True, False, True),
    "learn_minimum": (1024, 1, 2048),
    "prompts_limit": (8 << 30, 0, 1 << 50),
    "conversations_limit": (16 << 30, 1, 1024),
    "head_start": (True, False, True),
    "slot_save_path": (None, "slots", "../slots"),
    "shared_shelf": (None, "shelf", "../shelf"),
    "state_dir": (Path("/xdg/state/bioproxy"), "state", "/state"),
    "queue_limit": (100, 0, 7),
    "queue_timeout": (600.0, 0.5, 60),
    "patience": (10.0, 0, 2.5),
    "linger": (0.5, 0, 0.1),
    "ping_interval": (10.0, 0, 0.5),
    "max_body": (67108864, 1, 1024),
    "log_format": ("text", "json", "text"),
}
PATHS = {"model", "slot_save_path", "shared_shelf", "state_dir", "api_key_file", "llama_ca_file", "llama_api_key_file"}

# Settings, and what each of them refuses.
BAD: dict[str, list[Any]] = {
    "host admin_host": [1, "", " ", None, ["a"]],
    "port admin_port": [-1, 65536, 1.5, "80", True, None, []],
    "llama_url": [
        *(8080, None, "", "localhost:8080", "ftp://h", "/v1", "http://", "http://h:x", "http://h:0", "http://h:65536"),
        *("http://u@h", "http://h?a", "http://h#a", "http://[::1", "http://h/ a", "http://h/é"),
    ],
    "upstream_timeout": [0, 0.9, 86401, float("nan"), float("inf"), "30", False],
    "poll_interval queue_timeout": [0, -1, 86401, None],
    "ping_interval patience": [-0.1, 86401],
    "linger": [-0.1, 3601, True],
    "warmup save_conversations learn head_start": [0, 1, "true", None],
    "warmup_chunk max_body learn_minimum": [0, -1, 1.0, 2**40 + 1],
    "prompts_limit conversations_limit": [
        *(-1, 1.0, 1.5, float("nan"), (1 << 50) + 1, 10**4000, True, None, []),
        *(
            "",
            "G",
            "8",
            "8T",
            "8GB",
            "8 G",
            "-1G",
            ".5G",
            "1.G",
            "1e3M",
            "1048577G",
            "9" * 5000 + "G",
            "8\u212a",
            "\u0668G",
        ),
    ],
    "queue_limit": [-1, 1_000_001, "many"],
    "listen admin_listen": [1, "", None],
    "admin_hosts": [1, None, [1], ["a:1"], ["a b"], "a/b", {}],
    "llama_server": [1, "", None, "a/\0b", "a/\ud800"],
    "llama_args": [1, None, {}, [8192], ["a\0b"], ["\ud800"], "'open"],
    "model slot_save_path shared_shelf state_dir api_key_file llama_ca_file llama_api_key_file": [
        1,
        "",
        "a\0b",
        "~nobody-of-this-name/x",
        None,
    ],
    "log_format": ["", "JSON", "xml", 1, None, []],
    "prefixes": [None, [], "@code=code.txt", {"@code": 1}, {"@code": ""}, {"@code": "\0"}, {"@code": "\ud800"}],
}


class Loading(FolderTest):
    """`load`, with files in a folder of its own and no default file."""

    def setUp(self) -> None:
        """Hide the real home."""
        super().setUp()
        self.file = self.folder / "conf.json"
        self.patch(os, "environ", {"XDG_CONFIG_HOME": str(self.folder), "XDG_STATE_HOME": "/xdg/state", "HOME": "/h"})

    def load(self, content: Any = None, command_line: dict[str, Any] | None = None) -> Settings:
        """Load with the file's content and options of a command line given in ``/elsewhere``."""
        if content is not None:
            self.file.write_text(content if isinstance(content, str) else json.dumps(content))
        return config.load(command_line or {}, self.file if content is not None else None, Path("/elsewhere"))

    def refused(self, content: Any, command_line: dict[str, Any] | None = None) -> str:
        """Return what is said of it: one line."""
        with self.assertRaises(ConfigError, msg=f"{content} {command_line}") as caught:
            self.load(content, command_line)
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        return message

    def test_shared_shelf(self) -> None:
        """A shared shelf needs a slot folder that is seen, and is another one."""
        for given, text in (
            ({"shared_shelf": "shelf"}, "shared_shelf: needs slot_save_path"),
            ({"shared_shelf": "same", "slot_save_path": "same"}, "shared_shelf: must be another folder"),
        ):
            self.assertIn(text, self.refused(given))
        found = self.load({"shared_shelf": "shelf", "model": "m.gguf"})
        self.assertEqual(self.folder / "shelf", found.shared_shelf)

    def test_precedence(self) -> None:
        """Default < file < command line, for every setting; paths start where their source says."""
        self.assertEqual(set(config.FIELDS), set(KEYS))

        def meaning(key: str, value: Any, folder: Path) -> Any:
            if key == "prefixes":
                return {prefix: folder / file for prefix, file in value.items()}
            if key == "admin_hosts":
                return tuple(value)
            if key == "llama_args":
                return tuple(value) if isinstance(value, list) else ("-c", "4096", "--alias", "two words")
            return folder / value if key in PATHS else value

        for key, (default, in_file, on_command_line) in KEYS.items():
            self.assertEqual(default, getattr(self.load(), key), key)
            needs = {"model": "m"} if key in ("llama_server", "llama_args", "shared_shelf") else {}
            from_file = meaning(key, in_file, self.folder)
            self.assertEqual(from_file, getattr(self.load({**needs, key: in_file}), key), key)
            from_command_line = meaning(key, on_command_line, Path("/elsewhere"))
            for content in ({**needs, key: in_file}, needs):
                self.assertEqual(from_command_line, getattr(self.load(content, {key: on_command_line}), key), key)
            self.file.unlink()

    def test_where_to_listen(self) -> None:
        """Host and port on the command line beat an endpoint in the file, but not one on the command line."""
        for listen, host, port in (("listen", "host", "port"), ("admin_listen", "admin_host", "admin_port")):
            for given in ({host: "h"}, {port: 1}, {host: "h", port: 1}):
                self.assertIsNone(getattr(self.load({listen: "tcp:1"}, given), listen))
                self.assertEqual("tcp:2", getattr(self.load({listen: "tcp:1"}, {listen: "tcp:2", **given}), listen))
                self.assertEqual("tcp:1", getattr(self.load({listen: "tcp:1", **given}), listen))

    def test_a_model_of_its_own(self) -> None:
        """A model and an address exclude each other, and how to run a model makes no sense without one."""
        for file, line in (({"model": "m", "llama_url": "http://a"}, {}), ({"llama_url": "http://a"}, {"model": "m"})):
            self.assertIn("model and llama_url: give only one", self.refused(file, line))
        for key, value in (("llama_server", "x"), ("llama_args", ["-c", "1"])):
            self.assertIn(f"{key}: needs the setting model", self.refused({key: value}))
            self.assertEqual(Path("/elsewhere/m"), self.load({key: value}, {"model": "m"}).model)
        # A program is looked for on the path, unless a slash says where it is.
        for text, program in (("x", "x"), ("./x", str(self.folder / "x")), ("~/bin/x", "/h/bin/x"), ("/b/x", "/b/x")):
            self.assertEqual(program, self.load({"model": "m", "llama_server": text}).llama_server)

    def test_settings_are_independent(self) -> None:
        """One setting from the command line leaves the file's others alone."""
        settings = self.load({"port": 1, "host": "h"}, {"port": 2})
        self.assertEqual(("h", 2), (settings.host, settings.port))

    def test_numbers_are_what_they_say(self) -> None:
        """Seconds are floats, whatever way they were written; the rest keeps its type."""
        self.assertIsInstance(self.load({"poll_interval": 3}).poll_interval, float)

    def test_sizes(self) -> None:
        """A size is a number of bytes, or a text with a unit in either case; the setting is bytes in any case."""
        for value, count in (
            (0, 0),
            (8589934592, 8 << 30),
            ("0K", 0),
            ("1k", 1024),
            ("300M", 300 << 20),
            ("1.5g", 3 << 29),
            ("0.0001K", 0),
            ("1048576G", 1 << 50),
        ):
            for key in ("prompts_limit", "conversations_limit"):
                found = getattr(self.load({key: value}), key)
                self.assertEqual((count, int), (found, type(found)), value)

    def test_bad_size(self) -> None:
        """The error says how a size is written, and which ones are possible."""
        self.assertEqual(
            f'{self.file}: prompts_limit: must be a number of bytes, or a text like "8G" with K, M or G,'
            ' from 0 to 1048576G, not "8T"',
            self.refused({"prompts_limit": "8T"}),
        )

    def test_prefixes_are_added(self) -> None:
        """The command line's prefixes are added to the file's, in order, each relative to its source."""
        settings = self.load({"prefixes": {"@a": "a", "/b": "/b"}}, {"prefixes": {"#c": "c"}})
        self.assertEqual(
            [("a", "@a", self.folder / "a"), ("b", "/b", Path("/b")), ("c", "#c", Path("/elsewhere/c"))],
            [(template.name, template.prefix, template.path) for template in settings.templates],
        )

    def test_home(self) -> None:
        """A `~` is the home folder, in the file and on the command line."""
        self.assertEqual(Path("/h/s"), self.load({"state_dir": "~/s"}).state_dir)
        self.assertEqual(Path("/h/s"), self.load({}, {"state_dir": "~/s"}).state_dir)

    def test_bad_values(self) -> None:
        """A bad value is refused in one line that names file and key, or the option."""
        rows = [(key, value) for keys, values in BAD.items() for key in keys.split() for value in values]
        self.assertEqual(set(config.FIELDS), {key for key, _ in rows})
        for key, value in rows:
            message = self.refused({key: value})
            self.assertTrue(message.startswith(f"{self.file}: {key}: "), message)
            option = "--prefix" if key == "prefixes" else "--" + key.replace("_", "-")
            message = self.refused(None, {key: value})
            self.assertTrue(message.startswith(f"{option}: "), message)

    def test_bad_addresses(self) -> None:
        """An address that a request's path cannot follow is refused, even where what is too much is empty."""
        for address in ("http://h/?", "http://h?", "http://h/#"):
            self.refused({"llama_url": address})

    def test_trailing_slash(self) -> None:
        """A slash at the end of the address is dropped: paths begin with one."""
        self.assertEqual("http://h:1", self.load({"llama_url": "http://h:1/"}).llama_url)

    def test_unknown_key(self) -> None:
        """An unknown key is refused, with the nearest known one if one is near."""
        table = {"prot": "port", "Queue_limit": "queue_limit", "prefix": "prefixes", "llama-url": "llama_url"}
        for key, near in table.items():
            self.assertEqual(f"{self.file}: unknown key {key!r}; did you mean {near!r}?", self.refused({key: 1}))
        self.assertEqual(f"{self.file}: unknown key 'xyzzy'", self.refused({"xyzzy": 1}))

    def test_duplicate_key(self) -> None:
        """A key given twice is refused, at any depth, even with equal values."""
        for key, content in (
            ("port", '{"port": 1, "host": "h", "port": 1}'),
            ("@a", '{"prefixes": {"@a": "1", "@a": "2"}}'),
        ):
            self.assertEqual(f"{self.file}: {key!r}: given twice", self.refused(content))

    def test_broken_file(self) -> None:
        """What is not one JSON object is refused, and the file is named."""
        for content in ("", "{", "{'port': 1}", '{"port": 1,}', "[]", "1", "null", '"port"', "{} {}", "[" * 100_000):
            self.assertTrue(self.refused(content).startswith(f"{self.file}: "), content)
        self.file.write_bytes(b'{"host": "\xff"}')
        with self.assertRaises(ConfigError):
            config.load({}, self.file, Path("/elsewhere"))

    def test_byte_order_mark(self) -> None:
        """A byte-order mark before the object does not matter."""
        self.assertEqual(1, self.load('\ufeff{"port": 1}').port)

    def test_missing_file(self) -> None:
        """A missing default file is fine; a missing file that was named is an error, and so is a folder."""
        self.assertEqual(Settings(), self.load())
        for file, reason in ((self.file, "No such file or directory"), (self.folder, "Is a directory")):
            with self.assertRaises(ConfigError) as caught:
                config.load({}, file, Path("/elsewhere"))
            self.assertEqual(f"{file}: {reason}", str(caught.exception))

    def test_default_file(self) -> None:
        """The default file is read where nobody names another, unless it is to be left alone."""
        default = self.folder / "bioproxy" / "conf.json"
        default.parent.mkdir()
        default.write_text('{"port": 1, "state_dir": "s"}')
        self.assertEqual((1, default.parent / "s"), (self.load().port, self.load().state_dir))
        self.assertEqual(8081, config.load({}, None, Path("/elsewhere"), use_file=False).port)
        self.assertEqual(2, self.load({"port": 2}).port)

    def test_own_port(self) -> None:
        """Bioproxy is not its own llama-server, by whatever name; another host or port is another server."""
        for content, refused in (
            ({"port": 8080}, True),
            ({"port": 8080, "host": "0.0.0.0", "llama_url": "http://localhost:8080"}, True),
            ({"admin_port": 8080}, True),
            ({"port": 80, "host": "10.1.1.1", "llama_url": "http://10.1.1.1"}, True),
            ({"port": 8080, "llama_url": "http://10.1.1.1:8080"}, False),
            ({"port": 8081}, False),
        ):
            settings = self.load(content)
            if refused:
                with self.assertRaises(ConfigError, msg=str(content)):
                    config.refuse_loop(settings)
            else:
                config.refuse_loop(settings)

    def test_endpoints(self) -> None:
        """An endpoint's host and port are read from its text; one without a port equals no port."""
        for listen, expected in (
            (None, None),
            ("unix:/run/b.sock", ("0.0.0.0", -1)),
            ("tcp:8080", ("0.0.0.0", 8080)),
            ("ssl:port=8443:interface=10.1.1.1:privateKey=k.pem", ("10.1.1.1", 8443)),
            ("tcp6:8080:interface=\\:\\:1", ("::1", 8080)),
        ):
            self.assertEqual(expected, config.endpoint_address(listen), listen)

    def test_endpoint_is_own(self) -> None:
        """An endpoint counts like host and port."""
        for given in ({"listen": "tcp:8080"}, {"admin_listen": "tcp:8080:interface=127.0.0.1"}):
            with self.assertRaises(ConfigError, msg=str(given)):
                config.refuse_loop(self.load(given))

    def test_unreachable_default_file(self) -> None:
        """A default file that cannot even be looked for is told in one line as well."""
        os.environ["XDG_CONFIG_HOME"] = "/" + "x" * 300  # stands for a folder that one may not look into
        with self.assertRaises(ConfigError):
            self.load()

    def test_folders(self) -> None:
        """Folders follow the XDG variables; relative ones are invalid and ignored, as the specification says."""
        for value in ("", "relative"):
            os.environ.update(XDG_CONFIG_HOME=value, XDG_STATE_HOME=value)
            self.assertEqual(Path("/h/.config/bioproxy/conf.json"), config.default_file())
            self.assertEqual(Path("/h/.local/state/bioproxy"), Settings().state_dir)

    def test_names(self) -> None:
        """A name is the prefix without its leading punctuation: 1 to 64 letters, digits, `_` and `-`."""
        good = {
            "@code": "code",
            "/context": "context",
            "plain": "plain",
            "@@#x": "x",
            "@a-b_C9": "a-b_C9",
            "/9": "9",
            "@" + "n" * 64: "n" * 64,
        }
        settings = self.load({"prefixes": dict.fromkeys(good, "t.txt")})
        self.assertEqual(list(good.values()), [template.name for template in settings.templates])
        for prefix in ("", "@", "@a.b", "@a b", " @a", "@a\n", "@café", "@a/b", "@a@", "@" + "n" * 65):
            self.assertIn(repr(prefix), self.refused({"prefixes": {prefix: "t.txt"}}))
            self.assertIn(repr(prefix), self.refused({}, {"prefixes": {prefix: "t.txt"}}))

    def test_same_name_twice(self) -> None:
        """Two prefixes that give one name are refused, from one source or from two."""
        for content, command_line in (({"@a": "1", "/a": "2"}, None), ({"@a": "1"}, {"prefixes": {"/a": "2"}})):
            message = self.refused({"prefixes": content}, command_line)
            for part in ("'@a'", "'/a'", "name 'a'"):
                self.assertIn(part, message)

    def test_name_of_a_learned_prompt(self) -> None:
        """A template is not called as learned prompts are: their files would be taken for each other."""
        for content, command_line in (
            ({"prefixes": {"@auto-0123456789ab": "t.txt"}}, None),
            ({}, {"prefixes": {"@auto-0123456789ab": "t.txt"}}),
        ):
            self.assertIn(
                "'@auto-0123456789ab' gives the name 'auto-0123456789ab', which looks like that of a learned prompt",
                self.refused(content, command_line),
            )
        similar = ["auto", "auto-0123456789a", "auto-0123456789abc", "auto-0123456789ag", "my-auto-0123456789ab"]
        settings = self.load({"prefixes": {f"@{name}": "t.txt" for name in similar}})
        self.assertEqual(similar, [template.name for template in settings.templates])

    def test_bad_name_tells_its_file(self) -> None:
        """A prefix without a usable name is a bad value like any other: the line names file and key."""
        message = self.refused({"prefixes": {"@": "t.txt"}})
        self.assertTrue(message.startswith(f"{self.file}: prefixes: "), message)
