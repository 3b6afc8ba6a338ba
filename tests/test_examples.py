"""The files in `examples/`: they name what bioproxy has, and the programs that they are for accept them.

Those programs (promtool of Prometheus, systemd-analyze) are not needed for working on bioproxy: where one is missing,
its tests are skipped.  With ``CI=true`` they are not: there everything must be tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks.fleet_parts import find_haproxy
from bioproxy.operator.options import Options
from bioproxy.prompts import templates
from bioproxy.settings import configuration as config
from tests.runtime.test_metrics import TABLE
from tests.support.folders import FolderTest
from tests.support.world import CODE, WorldTest

EXAMPLES = Path(__file__).parent.parent / "examples"
UNITS = sorted([*EXAMPLES.glob("systemd/*.service"), *EXAMPLES.glob("systemd/*.socket")])
PROMETHEUS = EXAMPLES / "prometheus"

MOST_EXPOSED = 20
"""The worst score that `systemd-analyze security` may give bioproxy, in tenths; it gave 11 at first."""


def run(program: str, *arguments: str | Path, text: bytes = b"", **variables: str) -> str:
    """Run a program, which must succeed; return what it said.  A test that needs one that is missing is skipped."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            raise AssertionError(f"{program} is missing")
        raise SkipTest(f"{program} is missing")
    command, environment = [program, *arguments], {**os.environ, **variables}
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    said = done.stdout.decode()
    if done.returncode:
        raise AssertionError(f"{program} ended with {done.returncode}:\n{said}")
    return said


def read_yaml(path: str) -> Any:
    """Return an example's content."""
    return yaml.safe_load((EXAMPLES / path).read_text())


def dashboard() -> Any:
    """Return Grafana's dashboard."""
    return json.loads((EXAMPLES / "grafana/dashboards/bioproxy.json").read_text())


def rules() -> list[Any]:
    """Return the alert rules."""
    return [rule for group in read_yaml("prometheus/rules.yml")["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield everything that is asked of Prometheus: where it stands, the expression, and the text beside it."""
    for rule in rules():
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):  # a row has none
            # What Grafana puts in before it asks.
            expression = re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
            yield panel["title"], re.sub(r"\$\w+", ".*", expression), target["legendFormat"]


class Expressions(FolderTest):
    """What the rules and the dashboard ask Prometheus for."""

    def test_names(self) -> None:
        """They ask for metrics and labels that there are, and look for values in the labels that those have."""
        used = set()
        for where, expression, beside in expressions():
            known = {"instance", "job", "le"}  # those of Prometheus itself
            if "haproxy_" in expression:
                known |= {"proxy", "server", "state"}
            for name, selector in re.findall(r"\b(bioproxy_\w+|up)\b(\{[^}]*\})?", expression):
                metric = re.sub("_(bucket|sum|count)$", "", name)
                kind, labels = ("gauge", "") if name == "up" else TABLE[metric]
                self.assertEqual(kind == "histogram", name != metric, f"{where}: {name}")
                if kind == "counter":
                    self.assertRegex(expression, rf"(rate|increase)\({name}|{name} (unless|offset)", where)
                known |= set(labels.split())
                for label in re.findall(r"(\w+)[=!]~?\"", selector):
                    self.assertIn(label, {"instance", "job", *labels.split()}, f"{where}: {name}")
                used.add(metric)
            for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
                self.assertLessEqual(set(by.split(", ")), known, where)
            for label in re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", beside):
                self.assertIn(label, known, where)
        # A dashboard that does not show what is counted should leave it out knowingly.
        left_out = {"request_seconds", "warmup_seconds", "template_tokens", "slot_bytes_total"}
        self.assertEqual(set(TABLE) - {f"bioproxy_{name}" for name in left_out}, used - {"up"})

    def test_syntax(self) -> None:
        """Prometheus understands them: each is put into a rule of its own."""
        made = [{"record": f"e{number}", "expr": text} for number, (_, text, _) in enumerate(expressions())]
        path = self.folder / "rules.yml"
        path.write_text(json.dumps({"groups": [{"name": "all", "rules": made}]}))
        self.assertIn(f"{len(made)} rules found", run("promtool", "check", "rules", path))

    def test_dashboard(self) -> None:
        """Grafana finds the data source, and no panel lies on another."""
        [source] = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
        [variable] = [each for each in dashboard()["templating"]["list"] if each["type"] == "datasource"]
        self.assertEqual(source["uid"], variable["current"]["value"])
        panels = dashboard()["panels"]
        self.assertEqual(len(panels), len({panel["id"] for panel in panels}))
        cells: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            here = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(here & cells, panel["title"])
            self.assertLess(max(here)[0], 24, panel["title"])
            cells |= here
            if panel["type"] != "row":
                self.assertEqual({"type": "prometheus", "uid": "${datasource}"}, panel["datasource"])


class Prometheus(WorldTest):
    """Prometheus' own judgement."""

    def test_rules(self) -> None:
        """The rules, and the configuration that names them, are as they should be."""
        for file in ("prometheus.yml", "fleet.yml"):
            said = run("promtool", "check", "config", PROMETHEUS / file)
            self.assertIn(f"{len(rules())} rules found", said)

    def test_alerts(self) -> None:
        """Each alert fires when it should, and only then; none is left untried."""
        run("promtool", "test", "rules", PROMETHEUS / "rules_test.yml")
        tried = (PROMETHEUS / "rules_test.yml").read_text()
        for rule in rules():
            self.assertRegex(tried, rf"alertname(: |=\"){rule['alert']}\b")

    def test_metrics(self) -> None:
        """What a bioproxy that was used answers is good style: names, units, help."""
        world = self.warm_world({"code": CODE, "broken": "<{gone.txt}> <{message}>"})
        for message in ("@code one", "@code two", "none"):
            self.assertEqual(200, world.chat(message).status)
        world.llama_server.down = True
        self.assertEqual(502, world.chat("@code three").status)
        text = world.operate("GET", "/metrics").body
        self.assertEqual("", run("promtool", "check", "metrics", text=text))


class Haproxy(FolderTest):
    """HAProxy's own judgement."""

    def test_accepted(self) -> None:
        """The configuration is valid, and has the same pairs, with the same ids, in both places."""
        (self.folder / "keys").write_text("key\n")
        program, file = find_haproxy() or "haproxy", EXAMPLES / "haproxy/haproxy.cfg"
        folder = str(self.folder)
        run(program, "-c", "-f", file, FLEET_KEYS=f"{folder}/keys", FLEET_SOCKET=f"{folder}/socket")
        pairs = re.findall(r"(?m)^    server (pair\d) (\S+) id (\d)", file.read_text())
        self.assertEqual(pairs[:3], pairs[3:])
        # Two places for each pair.
        self.assertIn(f"FLEET_PLACES-{2 * len(pairs[:3])}", file.read_text())


class Systemd(FolderTest):
    """systemd's judgement of the units, and bioproxy's of the command in them."""

    def test_verify(self) -> None:
        """Every line is one that systemd understands.

        It also wants every program to be there.  In the copies that it looks at, they are: each is Python.
        """
        copies = []
        for unit in UNITS:
            copies.append(self.folder / unit.name)
            copies[-1].write_text(
                re.sub(r"(?m)^(Exec\w+=)/(opt|usr/local)/\S+", rf"\1{sys.executable}", unit.read_text())
            )
        # A key that it does not know is no error: it only tells.
        self.assertEqual("", run("systemd-analyze", "verify", "--man=no", *copies))

    def test_hardening(self) -> None:
        """What the service may do is little, as systemd counts that."""
        unit = EXAMPLES / "systemd/bioproxy.service"
        run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", unit)

    def test_command(self) -> None:
        """The command is one that bioproxy understands, and names the sockets as their units do."""
        unit = (EXAMPLES / "systemd/bioproxy.service").read_text()
        [command] = re.findall(r"(?m)^ExecStart=((?:.*\\\n)*.*)", unit)
        words = shlex.split(command.replace("\\\n", " "))
        self.assertEqual(["/opt/bioproxy/bin/twistd", "--nodaemon", "--pidfile=", "bioproxy"], words[:4])
        given = dict(zip(words[4::2], words[5::2], strict=True))
        keys = {option.removeprefix("--").replace("-", "_") for option in given}
        self.assertLessEqual(keys - {"config"}, set(config.FIELDS))
        for option, socket in (("--listen", "bioproxy"), ("--admin-listen", "bioproxy-admin")):
            [name] = re.findall(r"(?m)^FileDescriptorName=(.*)", (EXAMPLES / f"systemd/{socket}.socket").read_text())
            self.assertEqual(f"systemd:domain=INET:name={name}", given[option])


class Configuration(FolderTest):
    """bioproxy's configuration files."""

    def test_accepted(self) -> None:
        """Every key and value in them is right, and so is the example of a template."""
        for file in ("systemd/conf.json", "docker/config/conf.json"):
            content = json.loads((EXAMPLES / file).read_text())
            copy = self.folder / "conf.json"
            copy.write_text(json.dumps(content))
            options = Options()
            options.parseOptions(["--config", str(copy)])
            [template] = options.settings.templates
            self.assertEqual("notes.txt", template.path.name)
        text = templates.read(templates.Template.of("@notes", EXAMPLES / "templates/notes.txt"))
        self.assertEqual(((), True), (text.errors, bool(text.prefix.strip())))

    def test_container(self) -> None:
        """The image runs bioproxy in the foreground, with the configuration that is mounted there."""
        lines = (EXAMPLES / "docker/Dockerfile").read_text().splitlines()
        [entry] = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("ENTRYPOINT")]
        [words] = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("CMD")]
        self.assertEqual(["/opt/bioproxy/bin/twistd", "--nodaemon", "--pidfile=", "bioproxy"], entry)
        self.assertEqual(["--config", "/etc/bioproxy/conf.json"], words)
        self.assertIn("./config:/etc/bioproxy:ro", read_yaml("docker/compose.yaml")["services"]["bioproxy"]["volumes"])


class Compose(SynchronousTestCase):
    """The containers.  There is no Docker where tests run, so this is about what can be seen from outside."""

    def test_files(self) -> None:
        """What is mounted is there; what is published, is on this machine only; every name is somebody's."""
        compose = read_yaml("docker/compose.yaml")
        folder = EXAMPLES / "docker"
        services = compose["services"]
        self.assertEqual({"bioproxy", "llama-server", "prometheus", "grafana"}, set(services))
        for name, service in services.items():
            self.assertLessEqual(set(service.get("depends_on", {})), set(services), name)
            for port in service.get("ports", ()):
                self.assertRegex(port, r"^127\.0\.0\.1:\d+:\d+$")
            for volume in service["volumes"]:
                source = volume.partition(":")[0]
                if source.startswith("."):
                    self.assertTrue((folder / source).is_dir(), volume)
                elif not volume.startswith("$"):
                    self.assertIn(source, compose["volumes"])
        build = services["bioproxy"]["build"]
        self.assertTrue((folder / build["context"] / build["dockerfile"]).is_file())
        self.assertEqual([], services["llama-server"].get("ports", []))

    def test_names(self) -> None:
        """The containers call each other by names that they answer to."""
        settings = json.loads((EXAMPLES / "docker/config/conf.json").read_text())
        [job] = read_yaml("prometheus/prometheus.yml")["scrape_configs"]
        [target] = job["static_configs"][0]["targets"]
        self.assertEqual([target.partition(":")[0]], settings["admin_hosts"])
        self.assertEqual("http://llama-server:8080", settings["llama_url"])
        [user] = re.findall(r"(?m)^USER (.*)", (EXAMPLES / "docker/Dockerfile").read_text())
        self.assertEqual(user, read_yaml("docker/compose.yaml")["services"]["llama-server"]["user"])


class Nginx(SynchronousTestCase):
    """The limits of nginx, which are to be bioproxy's, or wider."""

    def test_limits(self) -> None:
        """As large a body may come as bioproxy takes, and who waits for a place is not cut off."""
        text = (EXAMPLES / "nginx/bioproxy.conf").read_text()
        [size] = re.findall(r"(?m)^ *client_max_body_size (\d+)m;", text)
        [hours] = re.findall(r"(?m)^ *proxy_read_timeout (\d+)h;", text)
        self.assertEqual(config.Settings().max_body, int(size) << 20)
        self.assertGreater(int(hours) * 3600, 2 * config.Settings().queue_timeout)
