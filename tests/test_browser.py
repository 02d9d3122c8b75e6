"""In a real browser: JupyterLab runs notebooks 00 and 10, the explorer follows its slider, the page needs no kernel."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from explorer_page import explorer_page
from support import ROOT

from mnv3nb import count_flops, count_parameters, keep_masks, prune, score
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.profiles import get_profile

CHROMIUM = shutil.which(os.environ.get("MNV3NB_CHROMIUM", "chromium"))
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: install one or set MNV3NB_CHROMIUM to its path")
PATIENCE = 300_000  # ms: until then a busy machine is slow, not broken
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return Path(os.environ.get("MNV3NB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def lab(home, tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the notebooks, set to the smallest profile."""
    folder = tmp_path_factory.mktemp("lab")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        source = path.read_text().replace('profile: str = \\"digits\\"', 'profile: str = \\"smoke\\"')
        (notebooks / path.name).write_text(source)
    no_news = folder / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    no_news.parent.mkdir(parents=True)
    no_news.write_text('{"fetchNews": "false"}')

    port = find_free_port()
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--port-retries=0", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", "--IdentityProvider.token=", f"--ServerApp.root_dir={notebooks}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MNV3NB_HEADLESS": "0",
        "JUPYTERLAB_SETTINGS_DIR": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait(30)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def open_notebook(browser, lab: str, name: str):
    """A page of JupyterLab with the notebook `name` and a running kernel."""
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab}/tree/{name}?reset")  # without what an earlier page left open
    page.wait_for_function(
        """(name) => { const widget = window.jupyterapp?.shell?.currentWidget;
        return widget?.context?.path == name && widget.sessionContext?.session?.kernel; }""",
        arg=name,
    )
    return page


def run_all_cells(page) -> None:
    """Run the notebook that is open; fails if a cell has not run or shows an error."""
    notebook = page.evaluate("""async () => { const widget = jupyterapp.shell.currentWidget;
        await widget.revealed; await widget.context.ready; await widget.sessionContext.ready;
        await jupyterapp.commands.execute("notebook:run-all-cells");
        return widget.context.model.toJSON(); }""")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert all(cell["execution_count"] for cell in cells)


def scroll_to_explorer(page) -> None:
    page.evaluate("""() => { const notebook = jupyterapp.shell.currentWidget.content;
        const isExplorer = (cell) => cell.model.sharedModel.source.includes("Explorer(");
        notebook.scrollToItem(notebook.widgets.findIndex(isExplorer), "start"); }""")


def test_the_quickstart_runs_in_jupyterlab(browser, lab, pictures):
    page = open_notebook(browser, lab, "00_quickstart.ipynb")
    run_all_cells(page)
    page.screenshot(path=pictures / "quickstart.png")
    page.close()


def drag(page, handle, track, numbers, rates, highest: int) -> list[float]:
    """Move a slider from 0 to `highest` % to each of `rates` without letting go.

    Returns the seconds after which `numbers` followed each move.
    """
    box = track.bounding_box()
    assert box["width"] > 100, "the track has shrunk"
    handle.hover()
    page.mouse.down()
    waits = []
    for rate in rates:
        before = numbers.inner_text()
        start = time.perf_counter()
        page.mouse.move(box["x"] + box["width"] * (rate + 0.3) / highest, box["y"] + box["height"] / 2)
        while numbers.inner_text() == before:
            assert time.perf_counter() - start < 30, f"nothing followed the slider to {rate} %"
            page.wait_for_timeout(5)
        waits.append(time.perf_counter() - start)
    page.mouse.up()
    assert median(waits) < 3
    return waits


def expected_numbers(rate: float) -> dict[str, str]:
    """How the numbers must begin for the smallest profile's network, taken from the network pruned at `rate`."""
    dense = Runs().run(get_profile("smoke").sparse_config(), model=True).model()
    small = prune(dense, keep_masks(score(dense), rate))
    return {
        "filters": f"{sum(small.widths):,} of 5,016",
        "parameters": f"{count_parameters(small):,} (",
        "flops": f"{count_flops(small):,} (",
    }


def test_the_explorer_follows_its_slider(browser, lab, pictures):
    page = open_notebook(browser, lab, "10_explorer.ipynb")
    run_all_cells(page)
    scroll_to_explorer(page)
    page.screenshot(path=pictures / "explorer_before.png")
    numbers = page.locator(".mnv3nb-numbers")
    slider = page.locator(".widget-slider").first
    handle = slider.locator(".noUi-handle")
    track = slider.locator(".noUi-base")
    readout = slider.locator(".widget-readout")
    views = page.locator(".mnv3nb-view")

    drag(page, handle, track, numbers, [20, 0], highest=95)
    places = [view.bounding_box() for view in views.all()]
    waits = drag(page, handle, track, numbers, range(2, 61, 2), highest=95)
    (pictures / "explorer_redraws.txt").write_text("\n".join(f"{wait:.3f}" for wait in waits))
    page.wait_for_function("document.querySelector('.mnv3nb-numbers').innerText.includes('2,006 of')", timeout=PATIENCE)
    assert readout.inner_text() == "60"
    for name, value in expected_numbers(0.6).items():
        assert numbers.locator("span", has_text=name).locator("b").inner_text().startswith(value)
    raw = numbers.locator("span", has_text="raw accuracy").locator("b")
    api.expect(raw).to_contain_text("%", timeout=PATIENCE)  # measured in the background
    assert [view.bounding_box() for view in views.all()] == places, "a picture has moved"
    page.screenshot(path=pictures / "explorer.png")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.screenshot(path=pictures / "explorer_wide.png")

    readout.click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("50")
    page.keyboard.press("Enter")
    filters = numbers.locator("span", has_text="filters").locator("b")
    api.expect(filters).to_have_text(expected_numbers(0.5)["filters"], timeout=PATIENCE)
    assert readout.inner_text() == "50"

    page.evaluate("""() => jupyterapp.commands.execute("apputils:change-theme", {theme: "JupyterLab Dark"})""")
    page.wait_for_function("document.body.dataset.jpThemeLight == 'false'")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.screenshot(path=pictures / "explorer_dark.png")
    page.close()


def test_an_explorer_whose_kernel_is_gone_shows_its_still_picture(browser, lab, pictures):
    page = open_notebook(browser, lab, "10_explorer.ipynb")
    run_all_cells(page)
    scroll_to_explorer(page)
    api.expect(page.locator(".mnv3nb-view").first).to_be_visible()
    api.expect(page.locator(".mnv3nb-still")).to_be_hidden()
    page.evaluate("""async () => { const widget = jupyterapp.shell.currentWidget;
        await widget.context.save(); await widget.sessionContext.shutdown(); }""")
    page.close()

    page = open_notebook(browser, lab, "10_explorer.ipynb")
    scroll_to_explorer(page)
    api.expect(page.locator(".mnv3nb-still")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=pictures / "explorer_without_kernel.png")
    page.close()


def test_the_page_follows_its_slider_without_a_kernel(browser, pictures, tmp_path):
    (tmp_path / "page.html").write_text(explorer_page(Runs(), get_profile("smoke")), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))  # playwright takes no built-in method
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("body.ready")
    slider = page.locator("#rate")
    numbers = page.locator("#numbers")
    slider.focus()
    page.keyboard.press("Home")
    drag(page, slider, slider, numbers, [10, 30, 60], highest=90)
    while int(slider.input_value()) != 60:
        page.keyboard.press("ArrowLeft" if int(slider.input_value()) > 60 else "ArrowRight")
    for name, value in expected_numbers(0.6).items():
        number = numbers.locator("div", has=page.locator("dt", has_text=name)).locator("dd")
        assert number.inner_text().startswith(value)
    page.screenshot(path=pictures / "page.png", full_page=True)
    assert not errors
    page.close()
