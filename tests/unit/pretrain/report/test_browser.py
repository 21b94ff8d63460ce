"""Report pages in a real browser: curves, tables and samples answer, in any light, and the network is not asked."""

import json
import math
import re

import numpy as np
import pytest
from browser import browser, opened

from pretrain.report.figures import picture
from pretrain.report.html import html
from pretrain.report.page import Matrix, Number, Page, Section, Table
from pretrain.report.run_page import write_report

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
STEPS = [1, 7, 8, 30, 55, 89, 90, 144]


def loss(step, run=0):
    return 9 / step**0.4 + run


def make_run(folder, number=0, *, steps=STEPS, **facts):
    """Write a run whose loss, tokens and time at each step are known."""
    folder.mkdir()
    before = [0, *steps]
    rows = [
        {"step": step, "split": "train", "loss": loss(step, number), "tokens": 500 * step, "lr": 1e-3 / step}
        | {"grad_norm": 1.0, "tokens_per_s": 1e4, "step_s": 2.0 * (step - last) / (step - last)}
        for last, step in zip(before, steps, strict=False)
    ]
    rows += [
        {"step": step, "split": "validation", "loss": loss(step, number) + 0.1, "tokens": 500 * step}
        for step in steps[1::3]
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"name": folder.name, "exit": 0, **facts}))
    (folder / "config.yaml").write_text("".join(f"part{n}: {{key: {n}}}\n" for n in range(12)) + f"seed: {number}\n")
    samples = [
        {"step": step, "prompt": f"say {HOSTILE}", "continuation": f"at {step}\n{HOSTILE}"} for step in (7, 55, 144)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return write_report(make_run(folder / "run", name=HOSTILE, notes=[HOSTILE]), out=folder / "out")[0]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    names = ["a", "مرحبا بالعالم", "long" * 60]
    runs = [make_run(folder / f"{n}", n, steps=[*range(1, 400 + n)], name=name) for n, name in enumerate(names)]
    return write_report(*runs, out=folder / "out")[0]


def tip(page):
    """Return what the tip of the first chart says: a row for each curve, the nearest first."""
    rows = page.locator(".panel").first.locator(".tip tr").all()
    return [[cell.inner_text() for cell in row.locator("td").all()[1:]] for row in rows]


def centres(page, of=".panel >> nth=0 >> .curves g >> nth=0 >> circle"):
    boxes = [each.bounding_box() for each in page.locator(of).all()]
    return [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]


def test_hovering_tells_step_value_and_run_of_the_nearest_point(chromium, alone):
    with opened(chromium, alone) as page:
        points = centres(page)
        assert len(points) == len(STEPS)
        for step, (x, y) in zip(STEPS, points, strict=True):
            page.mouse.move(x + 1, y - 1)
            assert tip(page)[0] == ["training", f"{loss(step):.5g}", f"step {step}"]
        assert [row[0] for row in tip(page)] == ["training", "held out"]
        page.mouse.move(5, 5)
        assert not page.locator(".tip").first.is_visible()


def test_axes_are_as_they_say(chromium, alone):
    with opened(chromium, alone) as page:
        x, y = np.array(centres(page)).T
        values = np.array([loss(step) for step in STEPS])
        for across, down in ((STEPS, np.log(values)), (STEPS, values)):
            assert abs(np.corrcoef(x, across)[0, 1]) > 0.99999 and np.corrcoef(y, down)[0, 1] < -0.99999
            page.get_by_label("logarithmic").click()
            y = np.array(centres(page))[:, 1]
        for axis, said in (("tokens", "72,000 tokens"), ("seconds", "0:04:48")):
            page.get_by_label("horizontal axis").select_option(axis)
            page.mouse.move(*centres(page)[-1])
            assert tip(page)[0][2] == said
        ticks = page.locator(".panel >> nth=0 >> .axes text").all_text_contents()
        assert "100 s" in ticks or "2 min" in ticks


def test_a_stretch_can_be_enlarged_and_left_again(chromium, alone):
    with opened(chromium, alone) as page:
        points = centres(page)
        page.mouse.move(points[3][0] - 4, points[3][1])
        page.mouse.down()
        page.mouse.move(points[6][0] + 4, points[3][1])
        page.mouse.up()
        inside = centres(page)
        assert inside[6][0] - inside[3][0] > 2 * (points[6][0] - points[3][0])
        page.get_by_role("button", name="Whole range").click()
        assert centres(page) == points


def test_keys_go_from_point_to_point_and_from_curve_to_curve(chromium, alone):
    with opened(chromium, alone) as page:
        page.locator(".panel > svg").first.focus()
        for key, row in (
            ("Home", ["training", f"{loss(1):.5g}", "step 1"]),
            ("ArrowRight", ["training", f"{loss(7):.5g}", "step 7"]),
            ("ArrowDown", ["held out", f"{loss(7) + 0.1:.5g}", "step 7"]),
            ("ArrowRight", ["held out", f"{loss(55) + 0.1:.5g}", "step 55"]),
            ("End", ["held out", f"{loss(144) + 0.1:.5g}", "step 144"]),
        ):
            page.keyboard.press(key)
            assert [float(row[1])] == pytest.approx([float(tip(page)[0][1])], rel=1e-4) and tip(page)[0][::2] == row[
                ::2
            ]
        page.keyboard.press("Escape")
        assert not page.locator(".tip").first.is_visible()


def test_curves_are_smoothed_and_hidden_at_will(chromium, compared):
    with opened(chromium, compared) as page:
        panel = page.locator(".panel").first
        assert panel.locator(".raw").count() == panel.locator(".line").count() == 3
        page.get_by_label("smooth").click()
        assert (panel.locator(".raw").count(), panel.locator(".line").count()) == (0, 3)
        page.locator(".legend button").first.click()
        assert panel.locator(".line").count() == 2
        box = panel.locator(".curves").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        names = {row[0] for row in tip(page)}
        assert len(tip(page)) == 4 and names == {
            *(name for each in ("مرحبا بالعالم", "long" * 60) for name in (each, f"{each}, held out"))
        }


def test_tables_sort_and_filter(chromium, tmp_path):
    draw = np.random.default_rng(2)
    values = [*draw.normal(size=14).tolist(), math.nan]
    texts = [f"run {number}" for number in draw.permutation(15)]
    rows = [[text, Number(f"about {value:.1f}", value)] for text, value in zip(texts, values, strict=True)] + [
        ["run 99", "–"]
    ]
    path = tmp_path / "page.html"
    path.write_bytes(html(Page(title="t", kind="k", lead=[Table(["run", "value"], rows)]), {}))

    def shown():
        return [row.locator("td").first.inner_text() for row in page.locator("tbody tr").all() if row.is_visible()]

    with opened(chromium, path) as page:
        by_value = page.get_by_role("button", name="value")
        by_value.click()
        known = [texts[place] for place in np.argsort(values[:14])]
        assert shown() == [*known, texts[14], "run 99"]
        assert page.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
        by_value.click()
        assert shown() == [*known[::-1], texts[14], "run 99"]
        by_value.click()
        assert shown() == [*texts, "run 99"]
        page.get_by_role("button", name="run").click()
        assert shown() == [*(f"run {number}" for number in range(15)), "run 99"]
        page.get_by_label("Filter 16 rows").fill("RUN 1")
        assert shown() == [f"run {number}" for number in (1, 10, 11, 12, 13, 14)]
        assert page.locator("output").inner_text() == "6 of 16"


def test_samples_go_with_the_steps(chromium, alone):
    with opened(chromium, alone) as page:
        slider = page.get_by_label("Samples over the steps")
        assert page.locator(".samples p:visible").all_inner_texts() == [f"say {HOSTILE}at 144\n{HOSTILE}"]
        slider.focus()
        page.keyboard.press("Home")
        assert page.locator(".samples p:visible").all_inner_texts() == [f"say {HOSTILE}at 7\n{HOSTILE}"]
        assert slider.get_attribute("aria-valuetext") == "Step 7"


def test_foreign_texts_are_shown_and_nothing_else(chromium, alone):
    with opened(chromium, alone) as page:
        assert page.locator("h1").inner_text() == HOSTILE
        assert page.locator("td", has_text="onerror").first.inner_text() == HOSTILE
        assert page.title().endswith("· Pretraining") and page.locator("body img").count() == 0


def colour(page, selector, style):
    """Return red, green and blue, 0 to 1, of a colour that an element has."""
    said = page.locator(selector).first.evaluate("(element, style) => getComputedStyle(element)[style]", style)
    return np.array([float(part) for part in re.findall(r"[\d.]+", said)[:3]]) / 255


def contrast(page, selector, style):
    """Return the contrast, as WCAG 2 defines it, of a colour of an element with the page behind it."""
    pair = np.array([colour(page, selector, style), colour(page, "html", "backgroundColor")])
    linear = np.where(pair <= 0.04045, pair / 12.92, ((pair + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(chromium, compared, scheme):
    with opened(chromium, compared, color_scheme=scheme) as page:

        def is_light():
            return colour(page, "html", "backgroundColor").mean() > 0.5

        assert is_light() == (scheme == "light")
        for selector in ("h1", "nav a", ".kind", "thead button", "td"):
            assert contrast(page, selector, "color") >= 4.5
        for number in range(3):
            assert contrast(page, f".curves g:nth-of-type({number + 1}) path", "stroke") >= 3
        page.get_by_title("Light or dark").click()
        assert is_light() == (scheme == "dark")
        page.reload()
        assert is_light() == (scheme == "dark"), "the choice stays"
        page.emulate_media(media="print")
        assert is_light(), "paper is white"


@pytest.mark.parametrize("width", [340, 1300])
def test_a_page_is_as_wide_as_its_window(chromium, compared, width):
    with opened(chromium, compared, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".panel > svg").first.bounding_box()["width"] > 0.4 * min(width, 1000)


def test_without_javascript_the_page_can_be_read(chromium, alone):
    with opened(chromium, alone, java_script_enabled=False) as page:
        assert page.locator(".charts img").evaluate("(image) => image.naturalWidth") == 900
        assert page.locator(".samples p").count() == 3
        assert page.get_by_role("row", name="Last logged step 144").is_visible()


@pytest.mark.parametrize(
    ("losses", "drawn"),
    [([2.5], 1), (["NaN", "Infinity"], 0), ([-1.0, 1e30, 1e306], 2), ([1.0, 1 + 2e-16, 1.0], 3), ([0.0, 0.0], 2)],
    ids=["one point", "nothing finite", "odd values", "next to no range", "zeros"],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_odd_runs_are_drawn(chromium, tmp_path, losses, drawn, split):
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": 10**place, "split": split, "loss": loss} for place, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened(chromium, write_report(run, out=tmp_path / "out")[0]) as page:
        assert page.locator(".panel").count() == 4
        assert page.locator(".curves circle").count() == drawn
        assert page.get_by_text("no values").count() == 4 - bool(drawn)
        paths = page.locator(".panel path").evaluate_all("(paths) => paths.map((path) => path.getAttribute('d'))")
        assert not re.search("NaN|Infinity", "".join(paths))


def test_a_confusion_matrix_says_how_often_and_shades_by_share(chromium, tmp_path):
    counts = np.array([[30, 10, 0], [0, 5, 5], [0, 0, 0]])
    matrix = Matrix("confusion-matrix", ["a", HOSTILE, "בית"], counts)
    path = tmp_path / "page.html"
    path.write_bytes(
        html(
            Page(title="t", kind="k", sections=[Section("Confusion", [matrix])]), {"confusion-matrix": picture(matrix)}
        )
    )
    with opened(chromium, path) as page:
        cells = page.locator(".matrix td")
        assert cells.all_inner_texts() == ["75%", "25%", "", "", "50%", "50%", "", "", ""]
        assert cells.nth(1).get_attribute("title") == f"a → {HOSTILE}: 10 of 40 (25.0%)"
        shades = cells.evaluate_all("(cells) => cells.map((cell) => getComputedStyle(cell).backgroundColor)")
        assert len({*shades[:3]}) == 3 and len({shades[2], shades[3], *shades[6:]}) == 1
