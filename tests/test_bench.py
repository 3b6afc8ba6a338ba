"""The parts of the benchmark that only calculate: turns, tables, comparing two runs, counting files, pictures."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.bench import plots, results
from benchmarks.bench.disk import counted, day
from benchmarks.bench.measuring import in_turns, p99
from benchmarks.bench.results import Found, Table, number
from tests.support.folders import FolderTest


class MeasuringTests(SynchronousTestCase):
    """Turns and percentiles."""

    def test_each_has_its_turn_in_each_round(self) -> None:
        """No contestant is asked twice before all were asked once, and the order differs between rounds."""
        asked: list[str] = []

        def measure(name: str) -> float:
            asked.append(name)
            return float(len(asked))

        taken = in_turns(("a", "b", "c"), 10, measure)
        rounds = [asked[at : at + 3] for at in range(0, 30, 3)]
        self.assertEqual([sorted(each) for each in rounds], [["a", "b", "c"]] * 10)
        self.assertGreater(len({tuple(each) for each in rounds}), 1)
        self.assertEqual([len(values) for values in taken], [10, 10, 10])

    def test_first_rounds_do_not_count(self) -> None:
        """One in twenty rounds more is made, and its values are left out."""
        asked: list[str] = []
        taken = in_turns(("a",), 40, lambda name: asked.append(name) or [1.0, 2.0])  # type: ignore[func-returns-value]
        self.assertEqual((len(asked), len(taken[0])), (42, 80))

    def test_p99(self) -> None:
        """99 of 100 values are below it; of a few values it is the largest."""
        self.assertEqual(p99([float(each) for each in range(200)]), 198.0)
        self.assertEqual(p99([3.0, 1.0]), 3.0)


class ResultsTests(FolderTest):
    """Tables, files, and the comparison of two runs."""

    def setUp(self) -> None:
        """Have a folder and something found."""
        super().setUp()
        table = Table("post", "A post", ("", "p50 ms"), (("direct", 0.1234), ("bioproxy", None)), "In turns.")
        self.found = Found([table], {"ratio": 1.0}, ["nginx is not installed"])

    def test_numbers(self) -> None:
        """Three digits where that is enough, and all of a large number."""
        self.assertEqual(
            [number(each) for each in (None, "x", 7, 1234567, 123456.7, 0.123456, 0.0, 0.00012)],
            ["-", "x", "7", "1,234,567", "123,457", "0.123", "0", "0.00012"],
        )

    def test_write_keeps_other_themes(self) -> None:
        """A second theme stands beside the first, in both files."""
        results.write(self.folder, "one", self.found, {"python": "3"})
        results.write(self.folder, "two", self.found, {"python": "3"})
        self.assertEqual(list(results.load(self.folder / "results.json")), ["one", "two"])
        text = (self.folder / "tables.md").read_text()
        for part in ("## one", "## two", "| direct | 0.123 |", "| bioproxy | - |", "In turns.", "* nginx is not"):
            self.assertIn(part, text)

    def compare(self, other: float) -> tuple[int, str]:
        """Return exit code and output of a comparison."""
        files = []
        for name, value in (("one", 1.0), ("other", other)):
            self.found.ratios = {"ratio": value, name: 1.0}
            results.write(self.folder / name, "latency", self.found, {})
            files.append(str(self.folder / name / "results.json"))
        with redirect_stdout(StringIO()) as output:
            code = results.main(*files)
        return code, output.getvalue()

    def test_runs_that_agree(self) -> None:
        """Within 15 % all is well; what only one of them has is not compared."""
        code, text = self.compare(1.14)
        self.assertEqual(code, 0)
        self.assertIn("1 of 1 ratios within 15 %", text)

    def test_runs_that_do_not_agree(self) -> None:
        """Beyond 15 % the ratio is marked, in both directions."""
        for other in (1.16, 0.84):
            code, text = self.compare(other)
            self.assertEqual(code, 1)
            self.assertIn("MORE", text)


class DiskTests(SynchronousTestCase):
    """A day's requests, and its files."""

    def test_day(self) -> None:
        """A day has as many requests as are wanted, each of which has something new to say."""
        steps = list(day(40))
        self.assertEqual(len(steps), 40)
        self.assertGreater(len({id(step.session) for step in steps}), 4)

    def test_counted(self) -> None:
        """A file was read again if it was restored after it was saved, and before it was saved anew."""
        files = counted(
            [
                ("save", "a.bin", 10),
                ("save", "b.chat.new.bin", 20),  # is renamed to b.chat.bin
                ("restore", "b.chat.bin", 20),
                ("restore", "b.chat.bin", 20),
                ("save", "a.bin", 30),
                ("restore", "a.bin", 30),
                ("restore", "of-yesterday.bin", 5),
            ]
        )
        self.assertEqual((files.saved, files.saved_bytes), (3, 60))
        self.assertEqual((files.restored, files.restored_bytes), (4, 75))
        self.assertEqual((files.again, files.again_bytes), (2, 50))


class PlotTests(FolderTest):
    """Pictures."""

    def test_nothing_to_draw(self) -> None:
        """Without any theme there is no picture."""
        self.assertEqual(plots.draw({}, self.folder), [])

    def test_same_figures_same_picture(self) -> None:
        """Two drawings of one table are the same bytes, and name the contestants."""
        table = {
            "name": "first-token-smollm2-3000",
            "title": "Seconds: smollm2, 3,000 tokens",
            "columns": ["", "llama.cpp alone, s", "bioproxy, s", "llama.cpp alone, computed tokens"],
            "rows": [["cold", 20.0, 21.0, 3000], ["in a running warm-up", None, 0.5, None]],
        }
        drawn = []
        for turn in range(2):
            folder = self.folder / str(turn)
            folder.mkdir()
            (file,) = plots.draw(json.loads(json.dumps({"first-token": {"tables": [table]}})), folder)
            drawn.append(file.read_text())
        self.assertEqual(drawn[0], drawn[1])
        self.assertIn("llama.cpp alone", drawn[0])
