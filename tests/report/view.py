"""The page in a real Chromium, with every network request refused and counted."""

from __future__ import annotations

import re

SIZES = {"desktop": (1280, 900), "phone": (360, 740)}


class View:
    """One page, opened, and what went wrong with it."""

    def __init__(self, browser, path, size, *, clock=False, ready="html[data-drawn=yes]"):
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            is_mobile=size == "phone",
            has_touch=size == "phone",
            reduced_motion="reduce",
        )
        self.page = self.context.new_page()
        self.faults, self.requests = [], []
        self.page.on("console", lambda said: self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.context.route(re.compile("^(?!file:|data:)"), lambda route: route.abort())
        if clock:
            self.page.clock.install()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(ready)

    def in_scheme(self, scheme, media="screen"):
        self.page.emulate_media(color_scheme=scheme, media=media)
        # The change is told to the page before it paints anew.
        self.evaluate("new Promise((next) => requestAnimationFrame(() => setTimeout(next)))")
        return self

    def evaluate(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def wait(self, script):
        """Until the script says true. Playwright's own way is eval, which our policy forbids."""
        for _ in range(300):
            if self.evaluate(script):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"never true: {script}")

    def opens(self, selector):
        """Click a summary, and wait until the page has heard of it: the browser tells it later."""
        summary = self.page.locator(f"{selector} summary")
        summary.evaluate(
            """(summary) => summary.parentElement.addEventListener(
                 "toggle", () => (summary.dataset.told = "yes"), { once: true })"""
        )
        summary.click()
        self.page.locator(f"{selector} summary[data-told]").wait_for()
        summary.evaluate("(summary) => delete summary.dataset.told")

    def result(self, name):
        return self.page.locator(f'[data-result="{name}"]').inner_text()

    def rows(self):
        lines = self.page.locator('[data-result="rows"] tr').all()
        return [line.locator("td").all_inner_texts() for line in lines]
