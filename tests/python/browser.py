"""Drives the host's pages with a headless Chromium.

Arguments: host:port, a folder for screenshots, host:port of the admin API. The host serves two versions of demo/credit
(v2 is primary), demo/echo-FP32 and demo/digits.
"""

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ADDRESS, SCREENSHOTS, ADMIN = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
URL = f"http://{ADDRESS}"
EXAMPLE = Path(__file__).parents[2] / "examples" / "credit-risk"
ROW = json.loads((EXAMPLE / "held-out.json").read_text())[0]
EXPECTED = json.loads((EXAMPLE / "expected.json").read_text())["xgboost"][0]


def browser(scripts):
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1100,1400"):
        options.add_argument(f"--{argument}")
    # One name points here, as after DNS rebinding. No other name resolves, so the pages cannot need the network.
    options.add_argument("--host-resolver-rules=MAP rebound.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
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
    # The form keeps its values.
    for field, value in ROW.items():
        assert driver.find_element(By.NAME, field).get_attribute("value") == str(value), field

    # A version can be named, and a wrong value gets an error.
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
    assert not driver.find_elements(By.CLASS_NAME, "errors-wrapper"), "the viewer reports errors in the document"
    shoot(driver, "docs")


def picture_works(driver, name):
    """The form uploads a picture. A file that is not a picture gets an error."""
    folder = Path(__file__).parents[2] / "examples" / "digits"
    for case in json.loads((folder / "expected.json").read_text())[:3]:
        driver.get(f"{URL}/models/demo/digits/")
        driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(folder / "pictures" / case["picture"]))
        answer = predict(driver, "answer")
        assert answer.startswith(f"digit: [{case['digit']}]\n"), (case, answer)
    shoot(driver, f"{name}-picture")
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(folder / "train.py"))
    assert 'input "picture", element 0' in predict(driver, "error")


class HostilePage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>hostile</title><p>a page of another site")

    def log_message(self, *_):
        pass


# Sends every kind of request that a page can send, with and without a preflight request.
ATTACK = """
const [urls, done] = arguments, tries = [];
for (const [method, url, body] of urls)
    for (const mode of ["no-cors", "cors"])
        for (const type of ["text/plain", "application/json", "application/octet-stream", null])
            tries.push(fetch(url, {method, mode, body, headers: type ? {"content-type": type} : {}})
                .then(answer => answer.status, () => "refused"));
Promise.all(tries).then(done);
"""


def policy():
    with urllib.request.urlopen(f"http://{ADMIN}/v1/models/demo/credit") as answer:
        return json.load(answer)["policy"]


def attack(driver, page, admin, public):
    """No request of the page succeeds or changes anything."""
    before = policy()
    driver.get(page)
    model = f"http://{admin}/v1/models/demo/credit"
    urls = [
        ("POST", f"{model}/promote", '{"version": 1}'),
        ("POST", f"{model}/rollback", "{}"),
        ("POST", f"{model}/rollback", None),
        ("PUT", f"{model}/blobs/{'0' * 64}", "x"),
        ("POST", f"{model}/blobs/{'0' * 64}", "x"),
        ("POST", f"http://{admin}/v1/deployments/default/recreate", "{}"),
        ("POST", f"http://{public}/models/demo/credit/", json.dumps([ROW])),
    ]
    answers = driver.execute_async_script(ATTACK, urls)
    # Status 0 is an answer of another origin that the page may not read.
    assert all(answer in ("refused", 0, 403) for answer in answers), answers
    assert policy() == before, "a page of another site changed the policy"


def hostile_pages_are_refused(driver):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostilePage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    attack(driver, f"http://127.0.0.1:{server.server_port}/", ADMIN, ADDRESS)
    port, admin_port = ADDRESS.rsplit(":", 1)[1], ADMIN.rsplit(":", 1)[1]
    # The page has the origin of the public port, under a name that is not the host's.
    public = f"rebound.example:{port}"
    attack(driver, f"http://{public}/assets/docs.js", f"rebound.example:{admin_port}", public)
    server.shutdown()


for scripts in (False, True):
    driver = browser(scripts)
    try:
        form_works(driver, "scripts" if scripts else "plain")
        picture_works(driver, "scripts" if scripts else "plain")
        if scripts:
            docs_work(driver)
            hostile_pages_are_refused(driver)
    finally:
        driver.quit()
print("chromium: all well")
