"""The report's numbers against plain counting, and its page against what a page must be for everybody."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from report_material import METHODS, ROOT, configuration, evaluated, groups, write_card, write_report_folder

from benchmark.analysis import figures
from benchmark.analysis.report import make_report, sort_key, summary
from benchmark.analysis.report_cost import against_published
from benchmark.analysis.report_groups import FEWEST, groups_of
from benchmark.analysis.report_inputs import ReportTable, read_table
from benchmark.analysis.report_records import data_facts
from benchmark.analysis.report_scale import scale
from benchmark.commands.report import report
from benchmark.errors import UserError
from benchmark.evaluation.metrics import metric_values

VOID = {"meta", "link", "img", "br", "use", "path", "rect"}


class Page(HTMLParser):
    """Elements in order, each (tag, attributes, texts inside it), and what is wrong with how they nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(tag)
        else:
            self.open.pop()

    def handle_data(self, text):
        for _, _, texts in self.open:
            texts.append(text)

    def all(self, tag):
        return [(attributes, "".join(texts).strip()) for name, attributes, texts in self.elements if name == tag]

    def rows(self, identity):
        """Texts of a table's body cells, row by row."""
        inside, found = False, []
        for tag, attributes, texts in self.elements:
            if tag == "table":
                inside = attributes.get("id") == identity
            elif inside and tag == "tr":
                found.append([])
            elif inside and tag in ("td", "th"):
                found[-1].append("".join(texts).strip())
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_report_folder(tmp_path_factory.mktemp("results") / "laptop")
    (folder / "deviations.md").write_text(
        "# Deviations\n\n| a | b |\n|---|---|\n| 1 | <img src=x onerror=alert(1)> |\n"
    )
    header = (folder / "mine.csv").read_text().partition("\n")[0]
    cells = ["clicks", *("" for _ in header.split(",")[1:5]), "auc", *("" for _ in header.split(",")[6:])]
    (folder / "clicks.csv").write_text(f"{header}\n{','.join(cells)}\n")
    (folder / "clicks.md").write_text("## Predicted clicks\n\n| Method | AUC |\n| :-- | --: |\n| Late | 0.7312 |\n")
    drawing = figures.draw("figure3", "Scale & size", "It grows.", lambda axes: axes[0].plot([1, 2], [1, 2]))
    figures.write_figure(drawing, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        report("laptop", folder.parent, folder / "data", None)  # the verb
    return Page((folder / "report.html").read_text())


def test_the_page_is_whole_and_asks_nothing_of_the_network(page):
    assert page.wrong == []
    assert page.open == []
    loaded = [
        value
        for _, attributes, _ in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    outside = [value for value in loaded if not value.startswith(("#", "data:"))]
    assert set(outside) == {"https://arxiv.org/abs/2409.12740"} | {
        f"mine{end}" for end in (".csv", "_pairs.csv", ".md", ".tex", ".html")
    }
    assert "@import" not in "".join(text for _, text in page.all("style"))
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def test_a_screen_reader_finds_its_way(page):
    assert page.all("html")[0][0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(key, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert (
        len(page.all("caption")) == len(page.all("table")) - 2
    )  # deviations.md and clicks.md have tables of their own
    assert all("scope" in attributes for attributes, _ in page.all("th"))
    pictures = page.all("svg")
    assert len(pictures) >= 8
    assert all(attributes["role"] == "img" for attributes, _ in pictures)
    assert all(text.endswith(".") for _, text in page.all("desc"))
    assert len(page.all("figure")) == len(page.all("figcaption"))
    assert [a["alt"] for a, _ in page.all("img")] == ["It grows."]


def test_a_table_that_is_not_of_ranks_is_shown_as_it_stands(page):
    assert "Predicted clicks" in {text for _, text in page.all("h2")}
    assert {"0.7312"} < {text for _, text in page.all("td")}


def test_names_and_files_cannot_bring_code_into_the_page(page):
    assert len(page.all("script")) == 1
    assert METHODS["hstu"] in {text for _, text in page.all("th")}
    assert not [attributes for _, attributes, _ in page.elements if any(key.startswith("on") for key in attributes)]
    assert "<img src=x onerror=alert(1)>" in {text for _, text in page.all("td")}  # as text


def test_the_same_results_give_the_same_bytes(page, folder):
    first = (folder / "report.html").read_bytes()
    make_report(folder, "laptop", configuration(), folder / "data", folder / "report.html")
    assert (folder / "report.html").read_bytes() == first


def user_means(folder, method, metric):
    from benchmark.evaluation.metrics import read_ranks

    ranks = [read_ranks(folder / "runs" / f"toy-{method}-seed{seed}" / "ranks.parquet").rank for seed in (1, 2)]
    return 100 * np.mean([metric_values(one, [metric])[:, 0] for one in ranks], axis=0)


def test_winners_and_losers_are_counted_user_by_user(page, folder):
    own, reference = user_means(folder, "hllm", "ndcg@50"), user_means(folder, "hstu", "ndcg@50")
    row = next(row for row in page.rows("mine-1-winners-numbers") if row[0] == "HLLM")
    expected = [100 * sum(o > r for o, r in zip(own, reference, strict=True)) / len(own),
                100 * sum(o == r for o, r in zip(own, reference, strict=True)) / len(own),
                100 * sum(o < r for o, r in zip(own, reference, strict=True)) / len(own)]  # fmt: skip
    assert row[1:4] == [f"{share:.1f}" for share in expected]
    gains = sum(max(o - r, 0) for o, r in zip(own, reference, strict=True)) / len(own)
    assert row[4] == f"+{gains:.2f}"


@pytest.mark.parametrize(("kind", "column"), [("frequency", "target_frequency"), ("history", "history_length")])
def test_groups_hold_the_users_that_their_labels_say(page, folder, kind, column):
    values = groups()[column]
    own, reference = user_means(folder, "sasrec", "ndcg@10"), user_means(folder, "hstu", "ndcg@10")
    rows = [row for row in page.rows(f"mine-1-{kind}-numbers") if row[0] == "SASRec"]
    assert len(rows) == (6 if kind == "frequency" else 5)
    for _, label, users, value, _, difference, _ in rows:
        low, _, high = label.replace(",", "").partition("\N{EN DASH}")
        inside = (values >= int(low)) & (values <= int(high or low))
        assert int(users) == inside.sum()
        assert float(value) == pytest.approx(own[inside].mean(), abs=0.0051)
        shown = float(difference.replace("\N{MINUS SIGN}", "-"))
        assert shown == pytest.approx((own - reference)[inside].mean(), abs=0.0051)


@given(arrays(np.int32, st.integers(1, 400), elements=st.integers(0, 30)))
def test_every_user_is_in_one_group(values):
    found = groups_of(values)
    assert np.sum([group.users for group in found], axis=0).tolist() == [1] * len(values)
    assert ("0" in [group.label for group in found]) >= ((values == 0).sum() >= FEWEST)


@pytest.mark.parametrize(
    ("text", "number"),
    [("18.56 ± 0.20", 18.56), ("\N{MINUS SIGN}36.58 %", -36.58), ("+1.5 to +2.5", 1.5),
     ("332K", 332_000), ("1.1B", 1.1e9),
     ("6,040", 6040), ("<0.001", 0.001), ("reference", 0), ("single seed", 1), ("\N{EN DASH}", None), ("HSTU", None),
     ("2.13.0", None), ("8547d703a5c8", None), ("NVIDIA H200", None)],
)  # fmt: skip
def test_a_cell_sorts_by_its_number(text, number):
    assert sort_key(text) == ("" if number is None else repr(float(number)) if number not in (0, 1) else str(number))


def test_a_data_card_is_shown_only_for_the_split_of_the_results(folder, tmp_path):
    tables = [read_table(folder, "mine", configuration(), "laptop")]
    write_card(tmp_path / "fits")
    write_card(tmp_path / "other", split_sha256="d" * 64)

    def lines(name):
        facts = data_facts(tables, tmp_path / name, configuration())
        assert [one.split for one in facts] == ["f" * 64, "e" * 64]  # a block each
        return {line.cells[0].text: line.cells[1].text for line in facts[0].view.sections[0].lines}, facts[0].remark

    shown, remark = lines("fits")
    assert remark == ""
    assert shown["Interactions"] == "56,789"
    assert shown["Users whose test item stands in their history and cannot be hit"] == "6.25 %"
    for name, reason in (
        ("other", "has another split now (dddddddddddd)"),
        ("absent", "The prepared data set is not at"),
    ):
        shown, remark = lines(name)
        assert reason in remark
        assert "Interactions" not in shown
        assert shown["SHA-256 of the split"] == "f" * 64
    (tmp_path / "fits" / "toy" / "hllm" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match=r"dataset\.json is no data card of this version"):
        lines("fits")


def test_data_of_three_sizes_give_a_scale_curve_and_others_none(tmp_path):
    result = evaluated(tmp_path, seeds=(1,))
    first = result.blocks[0]

    def of_size(number):
        runs = [replace(row.runs[0].run, dataset_hash=str(number)) for row in first.rows]
        rows = [
            replace(
                row,
                row=replace(row.row, runs=(run,)),
                runs=(replace(row.runs[0], value=row.runs[0].value * number),),
                mean=row.mean * number,
            )
            for row, run in zip(first.rows, runs, strict=True)
        ]
        return replace(first, block=replace(first.block, rows=tuple(row.row for row in rows)), rows=tuple(rows))

    table = ReportTable(replace(result, blocks=tuple(map(of_size, (1, 2, 3)))), {})
    chart = scale(table, {"1": 1000, "2": 5000, "3": 90_000})
    assert chart.numbers.columns[1:] == tuple(f"{size} training interactions" for size in ("1,000", "5,000", "90,000"))
    mean = 100 * first.rows[-1].mean[2]
    assert [cell.text for cell in chart.numbers.sections[0].lines[-1].cells] == [
        "HLLM", *(f"{number * mean:.2f}" for number in (1, 2, 3))
    ]  # fmt: skip
    assert scale(table, {"1": 1000, "2": 1000, "3": 90_000}) is None  # two sizes
    assert scale(table, {}) is None  # sizes not known, and as many users in each


def test_a_folder_without_tables_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no table to report on; make one first, such as `snakemake table7`"):
        make_report(tmp_path, "laptop", configuration(), tmp_path, tmp_path / "report.html")


def test_an_interval_that_a_few_users_do_not_give_is_not_told():
    table = read_table(ROOT / "results" / "reference" / "laptop", "table7", configuration(), "laptop")
    block = table.result.blocks[0]
    rows = [
        row if row.comparison is None else replace(row, comparison=replace(row.comparison, improvement_low=np.nan))
        for row in block.rows
    ]
    assert "metrics (too few users for an interval), single seed." in summary(replace(block, rows=tuple(rows)), 6)


def test_what_is_said_of_the_kept_results_is_so(tmp_path):
    said, published = {}, {}
    for preset, name in (("laptop", "table7"), ("gpu", "meta_ml1m")):
        table = read_table(ROOT / "results" / "reference" / preset, name, configuration(), preset)
        block = table.result.blocks[0]
        said[preset], published[preset] = summary(block, 6), against_published(table, block, "block")
    assert said["laptop"] == (
        "Of the 5 methods compared with HSTU over 943 users, SASRec (RecBole) gains most: +48.4 % in the mean of 6 "
        "metrics (95 % interval +35.9 to +63.6 %), single seed."
    )
    assert "HSTU-large gains most: +17.7 %" in said["gpu"]
    assert said["gpu"].endswith(", 3 seeds.")
    assert published["laptop"] is None
    rows = {line.cells[0].text: [cell.text for cell in line.cells[1:]] for line in published["gpu"].sections[0].lines}
    assert rows["HSTU"][0] == "last epoch"
    assert rows["HSTU-large"][0].startswith("mean of epochs")  # no equal comparison, and it says so
    own = float(rows["HSTU"][1].removesuffix(" %").replace("\N{MINUS SIGN}", "-"))
    assert own == pytest.approx(100 * (32.63 / 32.91 - 1), abs=0.02)  # results/reference/README.md
