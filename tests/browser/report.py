#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A page of `prhs report` in a browser: report.py PAGE [SCREENSHOT-PREFIX]

Opens the page in Chromium, light and dark, 1280 and 400 pixels wide, and checks that the console stays empty, that nothing but the page is
asked for, that the page itself never scrolls sideways, and that no label of a drawing is cut off or lies on another one. With a prefix it
saves PREFIX-light-1280.png and so on, and PREFIX.pdf as printed from the dark page. Needs Debian's chromium and PyPI's playwright; exit
status 77 without them.
"""
import pathlib
import shutil
import sys

LABELS = """() => [...document.querySelectorAll('.drawing svg')].flatMap(svg => {
    const frame = svg.getBoundingClientRect(), title = svg.querySelector('title').textContent, found = [];
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, a], i) => {
        if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
            found.push(`${title}: '${text}' is cut off`);
        if (!svg.querySelector('rect'))
            boxes.slice(i + 1).forEach(([other, b]) => {
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 2 && high > 6)
                    found.push(`${title}: '${text}' lies on '${other}'`);
            });
    });
    return found;
})"""


def look(browser, url, scheme, width, shot):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page, bad = context.new_page(), []
    page.on("console", lambda message: bad.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: bad.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url in (url, "data:,") else bad.append(f"request: {request.url}"))
    page.goto(url, timeout=120000)
    page.wait_for_timeout(200)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        bad.append("the page is wider than the window")
    bad += page.evaluate(LABELS)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    if dark != (scheme == "dark"):
        bad.append(f"the background is not that of a {scheme} page")
    if shot:
        page.screenshot(path=f"{shot}-{scheme}-{width}.png", full_page=True)
        if scheme == "dark" and width == 1280:
            page.pdf(path=f"{shot}.pdf", format="A4")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        bad.append("unfolded, the page is wider than the window")
    context.close()
    print(f"{scheme}, {width} pixels: {len(bad)} complaints" + "".join(f"\n  {b}" for b in bad[:20]))
    return not bad


def main():
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if not chromium or not sync_playwright:
        print("Debian's chromium and PyPI's playwright are needed")
        return 77
    url, shot = pathlib.Path(sys.argv[1]).resolve().as_uri(), sys.argv[2] if len(sys.argv) > 2 else None
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        good = [look(browser, url, scheme, width, shot) for scheme in ("light", "dark") for width in (1280, 400)]
        browser.close()
    return 0 if all(good) else 1


sys.exit(main())
