"""What all tests share: one torch thread, one locale, and where the browser is."""

from __future__ import annotations

import os

# Tests run side by side on few cores: of what they start, too, each has one thread unless it asks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():  # Triton looks when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["LC_ALL"] = "C.UTF-8"  # of what tests start, too: no test speaks the reader's language
os.environ.pop("LANGUAGE", None)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run side by side on few cores; and one thread gives the same numbers every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser():
    """A real Chromium, closed at the end."""
    from chromium import find
    from playwright.sync_api import sync_playwright

    path = find()
    if path is None:
        reason = "no Chromium: `make browser` installs one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        yield chromium
        chromium.close()
