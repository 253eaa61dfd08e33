"""Drives the pages with a real headless Chromium. Arguments: host:port, a folder for screenshots.

The host serves demo/credit in two versions, of which one is primary, demo/echo-FP32 and demo/digits, and has no network.
"""

import json
import sys
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ADDRESS, SCREENSHOTS = sys.argv[1], Path(sys.argv[2])
URL = f"http://{ADDRESS}"
EXAMPLE = Path(__file__).parents[2] / "examples" / "credit-risk"
ROW = json.loads((EXAMPLE / "held-out.json").read_text())[0]
EXPECTED = json.loads((EXAMPLE / "expected.json").read_text())["xgboost"][0]


def browser(scripts):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1100,1400"):
        options.add_argument(argument)
    # Nothing outside this machine may be needed.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.binary_location = "/usr/bin/chromium"
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def shoot(driver, name):
    assert driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def fill(driver, row):
    for name, value in row.items():
        field = driver.find_element(By.NAME, name)
        if field.tag_name == "select":
            Select(field).select_by_visible_text(value or "")
        else:
            field.clear()
            field.send_keys("" if value is None else str(value))


def predict(driver, outcome):
    driver.find_element(By.TAG_NAME, "button").click()
    return WebDriverWait(driver, 30, ignored_exceptions=[NoSuchElementException, StaleElementReferenceException]).until(
        lambda driver: driver.find_element(By.CLASS_NAME, outcome).text
    )


def form_works(driver, name):
    driver.get(URL)
    shoot(driver, f"{name}-models")
    driver.find_element(By.LINK_TEXT, "demo/credit").click()
    shoot(driver, f"{name}-model")
    assert "gradient-boosted trees" in driver.page_source and "held_out_auc" in driver.page_source
    fill(driver, ROW)
    answer = predict(driver, "answer")
    shoot(driver, f"{name}-answer")
    probability = float(answer.splitlines()[0].split(":")[1])
    assert abs(probability - EXPECTED) < 1e-6 and "answered by version v2" in answer, answer
    # What was filled in stays.
    for field, value in ROW.items():
        assert driver.find_element(By.NAME, field).get_attribute("value") == str(value), field

    # A version of its own, and a value that the model does not take (the browser's own checks off).
    driver.get(f"{URL}/models/demo/credit/v1/")
    fill(driver, ROW)
    assert "answered by version v1" in predict(driver, "answer")

    driver.get(f"{URL}/models/demo/echo-FP32/")
    area = driver.find_element(By.NAME, "x")
    area.clear()
    area.send_keys("[1.5, oops]")
    assert 'tensor "x", element 1' in predict(driver, "error")
    shoot(driver, f"{name}-error")


def docs_work(driver):
    driver.get(f"{URL}/models/demo/credit/docs/")
    WebDriverWait(driver, 30).until(lambda driver: driver.find_elements(By.CLASS_NAME, "opblock"))
    operations = [block.text for block in driver.find_elements(By.CLASS_NAME, "opblock")]
    assert any("/models/demo/credit/" in text and "POST" in text for text in operations), operations
    assert not driver.find_elements(By.CLASS_NAME, "errors-wrapper"), "the viewer finds fault with the document"
    shoot(driver, "docs")


def picture_works(driver, name):
    """A file in the form, and one that is no picture."""
    folder = Path(__file__).parents[2] / "examples" / "digits"
    for case in json.loads((folder / "expected.json").read_text())[:3]:
        driver.get(f"{URL}/models/demo/digits/")
        driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(folder / "pictures" / case["picture"]))
        answer = predict(driver, "answer")
        assert answer.startswith(f"digit: [{case['digit']}]\n"), (case, answer)
    shoot(driver, f"{name}-picture")
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(folder / "train.py"))
    assert 'input "picture", element 0' in predict(driver, "error")


for scripts in (False, True):
    driver = browser(scripts)
    try:
        form_works(driver, "scripts" if scripts else "plain")
        picture_works(driver, "scripts" if scripts else "plain")
        if scripts:
            docs_work(driver)
    finally:
        driver.quit()
print("chromium: all well")
