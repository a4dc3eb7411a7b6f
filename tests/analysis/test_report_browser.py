"""The report in a browser: silent, sortable, and readable at every width, in the dark and by keyboard."""

import json
import shutil

import pytest
from report_material import configuration, write_card, write_report_folder

from benchmark.analysis.report import make_report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
    pytest.mark.xdist_group("browser"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_report_folder(tmp_path_factory.mktemp("results"))
    write_card(folder / "data")
    make_report(folder, "laptop", configuration(), folder / "data", folder / "report.html")
    return (folder / "report.html").as_uri()


def show(browser, address, width=1440, dark=False):
    """Load the page at a width; returns what the browser complained of and what it asked for."""
    browser.get_log("browser"), browser.get_log("performance")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(address)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return browser.get_log("browser"), asked


def test_it_loads_in_silence_and_alone(browser, address):
    complaints, asked = show(browser, address)
    assert complaints == []
    assert address in asked
    assert [url for url in asked if url != address and not url.startswith("data:")] == []


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows_not_even_opened(browser, address, width):
    show(browser, address, width)
    script = """
        for (const one of document.querySelectorAll("details")) one.open = true;
        const edge = document.documentElement.clientWidth;
        const inside = (e) => e.closest(".scroll, pre, .hidden, .skip");
        const out = [...document.querySelectorAll("body *")].filter((e) => !inside(e));
        const over = out.filter((e) => e.getBoundingClientRect().right > edge + 1);
        return [document.documentElement.scrollWidth, edge, over.map((e) => e.tagName + "#" + e.id)];"""
    scrolled, edge, outside = browser.execute_script(script)
    assert (scrolled, edge) == (width, width)
    assert outside == []
    texts = "return [...document.querySelectorAll('figure svg text')].map((e) => e.getBoundingClientRect().height)"
    assert min(browser.execute_script(texts)) >= 8  # pixels, of a line of text in a chart


def column(browser, table, number):
    script = "return [...document.querySelectorAll(`#${arguments[0]} tbody:first-of-type tr:not(.section)`)]" \
             ".map((row) => row.cells[arguments[1]].textContent)"  # fmt: skip
    return browser.execute_script(script, table, number)


def test_a_heading_sorts_its_column_and_puts_it_back(browser, address):
    show(browser, address)
    own = column(browser, "mine", 1)
    button = browser.find_elements("css selector", "#mine thead button")[1]
    assert button.text.startswith("R@10")
    states = []
    for _ in range(3):
        button.send_keys("\ue007")  # Enter: by keyboard alone
        head = browser.find_elements("css selector", "#mine thead th")[1]
        numbers = [float(text.split("±")[0]) for text in column(browser, "mine", 1)]
        states.append((head.get_attribute("aria-sort"), numbers))
    numbers = [float(text.split("±")[0]) for text in own]
    assert states == [
        ("descending", sorted(numbers, reverse=True)), ("ascending", sorted(numbers)), (None, numbers)
    ]  # fmt: skip
    browser.find_elements("css selector", "#mine thead button")[0].send_keys("\ue007")
    assert column(browser, "mine", 0) == ["HLLM", "HSTU & <script>alert(1)</script>", "Popularity", "SASRec"]


def test_a_quoted_row_stays_below_its_own_and_no_number_is_last(browser, address):
    show(browser, address)
    script = """
        const body = document.querySelector("#mine tbody");
        const quoted = body.rows[1].cloneNode(true);
        quoted.className = "quoted"; quoted.cells[0].textContent = "as published";
        body.rows[1].after(quoted);
        delete body.rows[3].cells[1].dataset.key;
        for (const head of document.querySelectorAll("#mine thead th")) head.replaceChildren(head.textContent);"""
    browser.execute_script(script)
    browser.execute_script(browser.execute_script("return document.scripts[document.scripts.length - 1].textContent"))
    before = column(browser, "mine", 0)
    browser.find_elements("css selector", "#mine thead button")[1].click()
    after = column(browser, "mine", 0)
    assert after.index("as published") == after.index(before[0]) + 1
    assert after[-1] == before[2]


def test_it_is_readable_in_the_dark(browser, address):
    luminance = """
        const channel = (v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
        const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
          return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b); };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const contrast = (l) => (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05);
        const texts = ["h1", "main p", "td", "figcaption", "main a"].map((s) =>
          contrast(light(getComputedStyle(document.querySelector(s)).color)));
        const inks = [...document.querySelectorAll("figure svg text")].map((e) => getComputedStyle(e).fill)
          .filter((fill, i, all) => all.indexOf(fill) === i).map((fill) => contrast(light(fill)));
        return [paper, texts, inks];"""
    for dark in (False, True):
        show(browser, address, dark=dark)
        paper, texts, inks = browser.execute_script(luminance)
        assert (paper < 0.05) == dark
        assert min(texts) >= 4.5
        assert max(inks) >= 7
