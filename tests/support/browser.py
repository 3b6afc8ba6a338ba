"""A headless Chromium, for the tests and pictures of the live page.

It is Debian's, with its own driver; selenium downloads nothing.  All switches are there to keep it quiet: it must not
look for updates, nor for anything else that is not on this machine.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

DRIVER = Path("/usr/bin/chromedriver")
BROWSER = Path("/usr/bin/chromium")

SWITCHES = """
    --headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --disable-extensions
    --hide-scrollbars --force-color-profile=srgb
""".split()


class Browser:
    """One Chromium with one tab.  Its calls block; `driver` is selenium's."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for switch in (*SWITCHES, f"--user-data-dir={folder}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.driver.set_script_timeout(30)

    def look(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Be a screen of this size, in CSS pixels, light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", {"features": [scheme]})

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """Give a command of Chromium's DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """Return what the console has had since this was last called, but for the chatty levels."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def violations(self) -> list[str]:
        """Return what axe-core has against the page as it is now."""
        source = (importlib.resources.files("axe_core_python") / "axe.min.js").read_text()
        self.run(f"if (!window.axe) {{ {source} }}")
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done, (e) => done(String(e)))"
        )
        assert isinstance(found, dict), found
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found["violations"]]

    def quit(self) -> None:
        """End it."""
        self.driver.quit()
