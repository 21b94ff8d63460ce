"""A browser without a window, and pages from files opened in it: Debian's Chromium, driven by Playwright.

Installing the package needs root, once; nothing else is downloaded.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")  # the first is half as large as the others
PACKAGE = PROGRAMS[0]


def program() -> str:
    """Return the path of a browser, which is installed if need be. Skips the test where none can be."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    if os.geteuid() != 0:
        pytest.skip(f"needs a browser: as root, apt-get install {PACKAGE}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "-qq", "update"], env=quiet, check=True)
        subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", PACKAGE], env=quiet, check=True)
    except (OSError, subprocess.CalledProcessError) as error:  # no Debian, or no network
        pytest.skip(f"needs Debian's {PACKAGE}, which cannot be installed here: {error}")
    return shutil.which(PACKAGE)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which Chromium refuses to root
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program(), args=sandbox)
        yield started
        started.close()


@contextmanager
def opened(started: Browser, path: Path, *, width: int = 1300, **options) -> Iterator[Page]:
    """Open a file as a page of so many pixels; `options` are of Playwright's `new_context`.

    At the end of the block, the page must have said nothing on its console, opened no dialog and asked for nothing.
    """
    happened = []
    context = started.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(5000)  # ms
    page.on("console", lambda message: happened.append(message.text))
    page.on("pageerror", lambda error: happened.append(str(error)))
    page.on("dialog", lambda dialog: (happened.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url == path.as_uri() or happened.append(request.url[:100]))
    page.goto(path.as_uri())
    yield page
    assert not happened, happened
    context.close()
