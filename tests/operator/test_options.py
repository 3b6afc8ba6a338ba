"""The command line: every option, and what is said of mistakes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from twisted.python.usage import UsageError

from bioproxy import __version__
from bioproxy.operator.options import Options
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import configuration as config
from tests.support.folders import FolderTest

# Arguments, the setting that they give, and its value, where relative paths start at the working folder.
GIVEN: list[tuple[list[str], str, Any]] = [
    (["--host", "::1"], "host", "::1"),
    (["--host", "8080"], "host", "8080"),
    (["--port=0"], "port", 0),
    (["--port", "1", "--port", "2"], "port", 2),
    (["--admin-host", "localhost"], "admin_host", "localhost"),
    (["--admin-port", "9"], "admin_port", 9),
    (["--listen", "unix:/run/b.sock"], "listen", "unix:/run/b.sock"),
    (["--admin-listen", "tcp:1"], "admin_listen", "tcp:1"),
    (["--admin-hosts", "a, b.lan"], "admin_hosts", ("a", "b.lan")),
    (["--api-key-file", "keys"], "api_key_file", Path("keys")),
    (["--llama-url", "http://gpu:1/"], "llama_url", "http://gpu:1"),
    (["--llama-ca-file", "~/ca.pem"], "llama_ca_file", Path("/h/ca.pem")),
    (["--llama-api-key-file", "key"], "llama_api_key_file", Path("key")),
    (["--upstream-timeout", "2.5"], "upstream_timeout", 2.5),
    (["--prefix", "@a=/a=b.txt"], "prefixes", {"@a": Path("/a=b.txt")}),
    (
        ["--prefix", "@a=/a", "--prefix=/b=b", "--prefix", "@a=/c"],
        "prefixes",
        {"@a": Path("/c"), "/b": Path("b")},
    ),
    (["--poll-interval", "1"], "poll_interval", 1.0),
    (["--warmup"], "warmup", True),
    (["--no-warmup"], "warmup", False),
    (["--no-warmup", "--warmup"], "warmup", True),
    (["--warmup-chunk", "64"], "warmup_chunk", 64),
    (["--save-conversations"], "save_conversations", True),
    (["--no-save-conversations"], "save_conversations", False),
    (["--learn"], "learn", True),
    (["--no-learn"], "learn", False),
    (["--no-head-start"], "head_start", False),
    (["--no-learn", "--learn"], "learn", True),
    (["--learn-minimum", "1"], "learn_minimum", 1),
    (["--prompts-limit", "1.5g"], "prompts_limit", 3 << 29),
    (["--prompts-limit", "1024"], "prompts_limit", 1024),
    (["--conversations-limit=0"], "conversations_limit", 0),
    (["--slot-save-path", "slots"], "slot_save_path", Path("slots")),
    (["--slot-save-path", "s", "--shared-shelf", "shelf"], "shared_shelf", Path("shelf")),
    (["--slot-save-path", "1"], "slot_save_path", Path("1")),
    (["--model", "m.gguf"], "model", Path("m.gguf")),
    (["--model", "m", "--llama-server", "llama-server"], "llama_server", "llama-server"),
    (["--model", "m", "--llama-args", "-c 8192 -ngl 99"], "llama_args", ("-c", "8192", "-ngl", "99")),
    (["--model", "m", "--llama-args", "8192"], "llama_args", ("8192",)),
    (["--state-dir", "~/s"], "state_dir", Path("/h/s")),
    (["--queue-limit", "0"], "queue_limit", 0),
    (["--queue-timeout", "1e2"], "queue_timeout", 100.0),
    (["--patience", "0"], "patience", 0.0),
    (["--linger", "0.25"], "linger", 0.25),
    (["--ping-interval", "0"], "ping_interval", 0.0),
    (["--max-body", "1024"], "max_body", 1024),
    (["--log-format", "json"], "log_format", "json"),
]

# Bad arguments, and what the one line must have.
BAD: list[tuple[list[str], str]] = [
    (["--port", "8080"], "llama_url: http://127.0.0.1:8080 is bioproxy's own port"),
    (["--port", "http"], '--port: must be a whole number from 0 to 65535, not "http"'),
    (["--port", ""], "--port: "),
    (["--port", "65536"], "--port: "),
    (["--port", "true"], "--port: "),
    (["--port", "1.5"], "--port: "),
    (["--poll-interval", "NaN"], "--poll-interval: "),
    (["--queue-timeout", "1e400"], "--queue-timeout: "),
    (["--max-body", "9" * 5000], "--max-body: "),
    (["--learn-minimum", "0"], "--learn-minimum: must be a whole number from 1 to 1000000, not 0"),
    (
        ["--prompts-limit", "8T"],
        '--prompts-limit: must be a number of bytes, or a text like "8G" with K, M or G, from 0',
    ),
    (["--conversations-limit", "1.5"], "--conversations-limit: "),
    (["--llama-url", "localhost"], "--llama-url: "),
    (["--host", " "], "--host: "),
    (["--log-format", "xml"], '--log-format: must be text or json, not "xml"'),
    (["--state-dir", ""], "--state-dir: "),
    (["--state-dir", "~nobody-of-this-name"], "--state-dir: ~nobody-of-this-name: "),
    (["--prefix", "@code"], "--prefix: must look like @code=code.txt, not '@code'"),
    (["--prefix", ""], "--prefix: "),
    (["--prefix", "@code="], "--prefix: "),
    (["--prefix", "@auto-0123456789ab=/a"], "which looks like that of a learned prompt"),
    (["--prefix", "=code.txt"], "--prefix: '' gives no name"),
    (["--prefix", "@a=1", "--prefix", "/a=2"], "--prefix: '@a' and '/a' both have the name 'a'"),
    (["--config", "/no/such/file"], "/no/such/file: No such file or directory"),
    (["--config", "~nobody-of-this-name/conf.json"], "home"),
    (["--config", "/"], "/: Is a directory"),
]


class CommandLine(FolderTest):
    """`Options`, with a home of its own and its output caught."""

    def setUp(self) -> None:
        """Hide the real home and the terminal."""
        super().setUp()
        self.patch(os, "environ", {"XDG_CONFIG_HOME": str(self.folder), "XDG_STATE_HOME": "/xdg", "HOME": "/h"})
        self.surveyed: list[list[tuple[str, str]]] = []
        self.interrupted = False
        self.output = io.StringIO()
        self.patch(sys, "stdout", self.output)

    def configure(self, content: str) -> None:
        """Write the default configuration file."""
        config.default_file().parent.mkdir(exist_ok=True)
        config.default_file().write_text(content)

    def survey(self, settings: Any, texts: Any, say: Any, reactor: Any = None) -> None:
        """Stand for asking llama-server, which needs a reactor."""
        self.surveyed.append(list(texts))
        if self.interrupted:
            raise KeyboardInterrupt
        say("ok: it is up")

    def parse(self, *arguments: str) -> Options:
        """Parse what stands after ``twistd -n bioproxy``."""
        options = Options()
        options.survey = self.survey
        options.parseOptions(list(arguments))
        return options

    def exit(self, *arguments: str) -> Any:
        """Return what the process would end with: 0, or a text to print (exit code 1)."""
        with self.assertRaises(SystemExit, msg=str(arguments)) as caught:
            self.parse(*arguments)
        return caught.exception.code

    def test_every_option(self) -> None:
        """Every setting can be given on the command line; paths start at the working folder."""
        self.assertEqual(set(config.FIELDS), {key for _, key, _ in GIVEN})
        for arguments, key, value in GIVEN:
            if isinstance(value, Path):
                value = Path.cwd() / value
            elif isinstance(value, dict):
                value = {prefix: Path.cwd() / file for prefix, file in value.items()}
            self.assertEqual(value, getattr(self.parse(*arguments).settings, key), arguments)

    def test_nothing_given(self) -> None:
        """Without options and file all is as by default."""
        options = self.parse()
        self.assertEqual(config.Settings(), options.settings)
        self.assertFalse(options.demo)
        self.assertEqual(config.default_file(), options.configuration)

    def test_beats_the_file(self) -> None:
        """The command line beats the file, flags in both directions; the file beats the defaults."""
        self.configure('{"port": 1, "warmup": false, "save_conversations": true, "prefixes": {"@a": "/f", "@b": "/b"}}')
        settings = self.parse("--warmup", "--no-save-conversations", "--prefix", "@a=/c").settings
        self.assertEqual((1, True, False), (settings.port, settings.warmup, settings.save_conversations))
        self.assertEqual({"@a": Path("/c"), "@b": Path("/b")}, settings.prefixes)
        self.assertEqual(2, self.parse("--port", "2").settings.port)

    def test_config(self) -> None:
        """``--config`` names another file instead of the default one."""
        self.configure("broken")
        other = self.folder / "other.json"
        other.write_text('{"port": 3, "slot_save_path": "s"}')
        options = self.parse("--config", str(other))
        self.assertEqual((3, self.folder / "s"), (options.settings.port, options.settings.slot_save_path))
        self.assertEqual(other, options.configuration)

    def test_file_that_is_gone(self) -> None:
        """A reload does without a default file only if there never was one: without it no keys would be asked for."""
        options = self.parse()
        self.assertEqual(config.Settings(), options.read())
        self.configure('{"port": 1}')
        self.assertEqual(1, options.read().port)
        config.default_file().unlink()
        self.assertIn("No such file", str(self.assertRaises(ConfigError, options.read)))

    def test_demo(self) -> None:
        """A demonstration leaves the user's own file alone, unless it is named."""
        self.configure('{"port": 1}')
        options = self.parse("--demo")
        self.assertEqual((True, 8081), (options.demo, options.settings.port))
        self.assertEqual(1, self.parse("--demo", "--config", str(config.default_file())).settings.port)

    def test_bad_input(self) -> None:
        """A bad value ends the start with one line that says what is wrong with which option."""
        for arguments, part in BAD:
            line = self.exit(*arguments)
            self.assertIsInstance(line, str, arguments)
            self.assertTrue(line.startswith("bioproxy: "), line)
            self.assertNotIn("\n", line)
            self.assertIn(part, line)

    def test_nested_input(self) -> None:
        """Not even nonsense that nests very deep brings a traceback."""
        self.assertIn("--port", self.exit("--port", "[" * 100_000))

    def test_bad_file(self) -> None:
        """A mistake in the file ends the start with one line: file, key, what is wrong."""
        for content, part in (('{"port": "x"}', "port: must be"), ('{"prot": 1}', "did you mean 'port'?"), ("[]", "")):
            self.configure(content)
            line = self.exit()
            self.assertTrue(line.startswith(f"bioproxy: {config.default_file()}: "), line)
            self.assertIn(part, line)
            self.assertNotIn("\n", line)

    def test_unreachable_file(self) -> None:
        """A default file that cannot be looked for ends the start with one line."""
        os.environ["XDG_CONFIG_HOME"] = "/" + "x" * 300  # stands for a folder that one may not look into
        self.assertTrue(self.exit().startswith("bioproxy: "))

    def test_wrong_words(self) -> None:
        """Unknown options and words that are none are twistd's to refuse."""
        for arguments in (["--prot", "1"], ["start"], ["--port"], ["--warmup=yes"], ["--no-port"]):
            with self.assertRaises(UsageError, msg=str(arguments)):
                self.parse(*arguments)

    def test_version(self) -> None:
        """``--version`` prints bioproxy's version, not Twisted's."""
        self.assertEqual(0, self.exit("--version"))
        self.assertEqual(f"bioproxy {__version__}\n", self.output.getvalue())

    def test_help(self) -> None:
        """``--help`` names every option."""
        self.assertFalse(self.exit("--help"))
        for arguments, _, _ in GIVEN:
            self.assertIn(arguments[0].partition("=")[0], self.output.getvalue())

    def test_check(self) -> None:
        """``--check`` prints settings and templates, and exits with 0 where all is well."""
        path = self.template("code", "Know this. <{message}>")
        self.assertEqual(0, self.exit("--check", "--prefix", f"@code={path}", "--port", "8088"))
        self.assertIn("port = 8088\n", self.output.getvalue())
        self.assertIn(f"@code -> {path}\n", self.output.getvalue())

    def test_check_asks(self) -> None:
        """``--check`` asks llama-server, about the templates too, unless a demonstration is to bring one."""
        path = self.template("code", "Know this. <{message}>")
        self.assertEqual(0, self.exit("--check", "--prefix", f"@code={path}"))
        self.assertEqual([[("code", "Know this. ")]], self.surveyed)
        self.assertIn("llama-server at http://127.0.0.1:8080\n    ok: it is up\n", self.output.getvalue())
        self.assertEqual(0, self.exit("--check", "--demo"))
        self.assertEqual(1, len(self.surveyed))

    def test_check_interrupted(self) -> None:
        """Ctrl-C ends a check as it ends other commands."""
        self.interrupted = True
        self.assertEqual(130, self.exit("--check"))

    def test_check_into_a_closed_pipe(self) -> None:
        """A reader that has enough, such as ``head``, ends a check without a traceback, also at the stream's end."""
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as output:
            self.patch(sys, "stdout", output)
            self.assertEqual(1, self.exit("--check"))

    def test_check_finds_problems(self) -> None:
        """``--check`` exits with 1 and a line for each problem, and still prints what it found."""
        good, bad = self.template("good", "Know. <{message}>"), self.template("bad", "nothing")
        code = self.exit(
            "--check", "--prefix", f"@bad={bad}", "--prefix", "@gone=/no/file", "--prefix", f"@good={good}"
        )
        self.assertEqual(
            [
                f"bioproxy: template bad: {bad}: no <{{message}}> in it",
                "bioproxy: template gone: /no/file: No such file or directory",
            ],
            code.split("\n"),
        )
        self.assertIn(f"@good -> {good}\n", self.output.getvalue())

    def test_check_with_an_odd_name(self) -> None:
        """``--check`` can tell of a file whose name is not UTF-8."""
        path = self.folder / os.fsdecode(b"\xff.txt")
        path.write_text("Know this. <{message}>")
        self.patch(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        self.assertEqual(0, self.exit("--check", "--prefix", f"@code={path}"))
