"""Figures: colours that colour-blind readers tell apart, bytes that can be made again, and SVG that a page can hold."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from benchmark.analysis import figures
from benchmark.analysis.figures import draw, inline_svg, series, write_figure
from benchmark.errors import UserError

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
LIGHT = (figures.COLOURS, figures.PAPER)
DARK = (figures.COLOURS_DARK, figures.PAPER_DARK)


def linear(colour):
    encoded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    scaled = TO_XYZ @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(first, second):
    """As the Web Content Accessibility Guidelines define it."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "background"), [LIGHT, DARK], ids=["light", "dark"])
def test_series_are_told_apart_with_any_colour_vision(colours, background):
    for name, matrix in VISION.items():
        seen = [lab(np.asarray(matrix) @ linear(colour)) for colour in colours]
        nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
        assert nearest > 14, name  # a difference of 2 can just be noticed side by side
    assert all(contrast(colour, background) >= 3 for colour in colours)  # 3: for graphics
    assert contrast(*((figures.INK, background) if background == figures.PAPER else (figures.INK_DARK, background))) > 7


def test_the_first_24_series_all_differ_also_without_colour():
    styles = [series(number) for number in range(24)]
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 24
    assert len({(style["marker"], style["fillstyle"]) for style in styles}) == 24  # where marks stand without lines


def chart(name="chart"):
    def plot(axes):
        for number in range(3):
            axes[0].plot([0, 1, 2], [number, 2, 1], label=f"${number} <of> us", **series(number))
        axes[0].set(xlabel="epoch", ylabel="NDCG@10 (%)")
        axes[0].legend()

    return draw(name, "Scores & <epochs>", "They meet at 2.", plot)


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = (write_figure(chart(), tmp_path / name) for name in "ab")
    assert [path.name for path in first] == ["chart.png", "chart.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not any(path.suffix == ".part" for path in tmp_path.rglob("*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_figure(chart(), tmp_path / "file")


def test_an_svg_says_what_it_shows_and_shares_a_page_with_others(tmp_path):
    _, path = write_figure(chart(), tmp_path)
    root = ElementTree.fromstring(path.read_text())
    space = "{http://www.w3.org/2000/svg}"
    assert [root.find(f"{space}{tag}").text for tag in ("title", "desc")] == ["Scores & <epochs>", "They meet at 2."]
    assert "$2 <of> us" in {text.text.strip() for text in root.iter(f"{space}text")}
    ids = []
    for name in ("one", "two"):
        text = inline_svg(chart(name))
        root = ElementTree.fromstring(text)
        assert root.get("aria-labelledby") == f"{name}-title"
        assert "#" not in text.replace('href="#', "").replace("url(#", "")  # every colour is the page's
        own = [element.get("id") for element in root.iter() if element.get("id")]
        used = [value.lstrip("#") for element in root.iter() for key, value in element.items() if key.endswith("href")]
        assert set(used) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))
