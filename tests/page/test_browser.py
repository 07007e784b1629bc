"""The page in a browser: it draws, answers keys and taps, and reports no error."""

from contextlib import contextmanager

import pytest

from tests.helpers import browser as browsers
from tests.helpers.browser import needs_browser, violations

pytestmark = [pytest.mark.slow, needs_browser]


@contextmanager
def browser(page, **options):
    """The page, opened and drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    with browsers.browser(page, **options) as driver:
        WebDriverWait(driver, 60).until(
            lambda found: found.execute_script("return document.documentElement.dataset.opened")
        )
        yield driver


def find(driver, selector):
    return driver.find_element("css selector", selector)


def test_keys_walk_over_tokens(page):
    from selenium.webdriver.common.keys import Keys

    with browser(page) as driver:
        assert len(driver.find_elements("css selector", "figure svg")) >= 6
        tokens = find(driver, "#tokens")
        size = int(find(driver, "#document option").text.split("(")[1].split()[0])
        tokens.send_keys(Keys.ARROW_RIGHT)
        assert f"token 1 of {size}" in find(driver, "#details h3").text
        assert "predicted by no row" in find(driver, "#live").get_attribute("textContent")
        tokens.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
        assert f"token 2 of {size}" in find(driver, "#details h3").text
        headings = [each.text for each in driver.find_elements("css selector", "#details h4")]
        assert [heading.split(" ·")[0] for heading in headings] == ["fused row", "small", "wide"]
        assert "weight" in headings[1]
        assert "fused row gives it" in find(driver, "#live").get_attribute("textContent")
        tokens.send_keys(Keys.ARROW_DOWN)
        below = find(driver, "#tokens .at")
        assert below.rect["y"] > driver.find_elements("css selector", "#tokens b")[0].rect["y"]
        tokens.send_keys(Keys.END)
        assert f"token {size} of {size}" in find(driver, "#details h3").text
        tokens.send_keys(Keys.HOME)
        assert f"token 1 of {size}" in find(driver, "#details h3").text


def test_pointing_and_colors_and_documents(page):
    from selenium.webdriver.common.action_chains import ActionChains

    with browser(page) as driver:
        fifth = driver.find_elements("css selector", "#tokens b")[4]
        ActionChains(driver).move_to_element(fifth).perform()
        assert "token 5 of" in find(driver, "#details h3").text
        assert fifth.get_attribute("class").startswith("s")
        find(driver, "input[value=surprise]").click()
        shades = {
            each.get_attribute("class")
            for each in driver.find_elements("css selector", "#tokens b")
        }
        assert shades <= {"unknown", *(f"q{step}" for step in range(5))}
        assert len(shades) > 1
        assert "10 bits and more" in find(driver, "#legend").text
        second = driver.find_elements("css selector", "#document option")[1]
        second.click()
        chosen = second.get_attribute("value")
        script = "return document.documentElement.dataset.opened.split(' ')[0]"
        while driver.execute_script(script) != chosen:
            pass
        assert "Choose a token" in find(driver, "#details").text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(page, dark):
    from selenium.webdriver.common.keys import Keys

    with browser(page, dark=dark) as driver:
        back = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") != dark
        find(driver, "#tokens").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert violations(driver) == []


def test_taps_on_a_phone_open_a_panel(page):
    with browser(page, width=390, height=800, touch=True) as driver:
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        assert not find(driver, "#panel").is_displayed()
        driver.execute_script("arguments[0].scrollIntoView()", find(driver, "#tokens"))
        driver.find_elements("css selector", "#tokens b")[3].click()
        assert "token 4 of" in find(driver, "#details h3").text
        assert find(driver, "#panel").rect["width"] == 390
        assert violations(driver) == []
        find(driver, "#close").click()
        assert not find(driver, "#panel").is_displayed()
