"""What item texts are like: lengths by tokenizer (figure 5), missing fields, texts that several items share."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from tabulate import tabulate
from tokenizers import Tokenizer

from benchmark.analysis.figures import Drawing, draw, series, write_figure
from benchmark.data.dataset import Dataset, Int64, load_dataset
from benchmark.data.preset_data import PresetData
from benchmark.data.text import PROMPT, TextSettings, texts_of, token_batches, tokenizer_for
from benchmark.errors import UserError
from benchmark.files import write_text

PERCENTILES = np.arange(1, 100)


@dataclass(frozen=True)
class TextFacts:
    """items: in the catalogue. missing: items without a field's text, and without any ("text"). repeated: items whose
    text another item has too. tokens: (items,) by tokenizer, prompt and BOS included, before the cut."""

    dataset: str
    items: int
    missing: dict[str, int]
    repeated: int
    characters: Int64
    tokens: dict[str, Int64]


def make_text_statistics(preset: PresetData, data: Path, folder: Path) -> str:
    """Write text_statistics.csv and figure5.{png,svg} into folder; returns a summary as text.

    The texts are those of the first protocol of each data set, with the settings of `TextSettings` but the tokenizer.
    """
    facts = []
    for name, protocols in preset.datasets.items():
        dataset = load_dataset(data / name / ("hllm" if "hllm" in protocols else protocols[0]))
        if not dataset.card.text_fields:
            continue
        fields = dataset.card.text_fields
        tokenizers = {
            label: tokenizer_for(dataset, settings, fields, PROMPT) for label, settings in preset.tokenizers.items()
        }
        facts.append(text_facts(dataset, tokenizers))
    if not facts:
        raise UserError("none of the preset's data sets has texts; name one in config/data.yaml")
    write_text(folder / "text_statistics.csv", statistics_csv(facts))
    write_figure(length_figure(facts), folder)
    rows = [
        [fact.dataset, label, f"{fact.items:,}", f"{tokens.mean():.1f}",
         *(int(np.percentile(tokens, q, method="inverted_cdf")) for q in (50, 90, 99)), _over(tokens)]
        for fact in facts for label, tokens in fact.tokens.items()
    ]  # fmt: skip
    limit = TextSettings().text_length
    headers = ["Data set", "Tokenizer", "Items", "Tokens, mean", "median", "p90", "p99", f"over {limit} (%)"]
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def text_facts(dataset: Dataset, tokenizers: dict[str, Tokenizer]) -> TextFacts:
    """Read the texts of a data set, once for the counts and once a tokenizer."""
    fields = dataset.card.text_fields
    missing: Counter[str] = Counter(dict.fromkeys([*fields, "text"], 0))
    seen: Counter[bytes] = Counter()
    characters = []
    for values in dataset.iterate_item_texts():
        missing.update(name for name in fields if name not in values)
        text = "\n".join(f"{name}: {value}" for name, value in values.items())
        missing["text"] += not text
        characters.append(sum(map(len, values.values())))
        if text:
            seen[blake2b(text.encode(), digest_size=12).digest()] += 1
    tokens = {
        label: np.array(
            [len(ids) for batch in token_batches(tokenizer, texts_of(dataset, fields, PROMPT)) for ids in batch]
        )
        for label, tokenizer in tokenizers.items()
    }
    repeated = sum(count for count in seen.values() if count > 1)
    return TextFacts(dataset.card.name, dataset.item_count, dict(missing), repeated, np.array(characters), tokens)


def statistics_csv(facts: list[TextFacts]) -> str:
    """One row a number: dataset, tokenizer (empty where none matters), statistic, value; shares are fractions."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", "tokenizer", "statistic", "value"])
    for fact in facts:
        writer.writerow([fact.dataset, "", "items", fact.items])
        writer.writerows([fact.dataset, "", f"items_without_{name}", count] for name, count in fact.missing.items())
        writer.writerow([fact.dataset, "", "items_with_repeated_text", fact.repeated])
        writer.writerow([fact.dataset, "", "characters_mean", round(float(fact.characters.mean()), 3)])
        for label, tokens in fact.tokens.items():
            writer.writerow([fact.dataset, label, "tokens_mean", round(float(tokens.mean()), 3)])
            values = np.percentile(tokens, PERCENTILES, method="inverted_cdf")
            writer.writerows(
                [fact.dataset, label, f"tokens_p{q}", int(value)] for q, value in zip(PERCENTILES, values, strict=True)
            )
            writer.writerow([fact.dataset, label, "tokens_max", int(tokens.max())])
            share = float((tokens > TextSettings().text_length).mean())
            writer.writerow([fact.dataset, label, "truncated", round(share, 6)])
    return file.getvalue()


def length_figure(facts: list[TextFacts]) -> Drawing:
    """Figure 5: the percentiles of the texts' lengths in tokens."""
    lines = [(f"{fact.dataset}, {label}", tokens) for fact in facts for label, tokens in fact.tokens.items()]
    limit = TextSettings().text_length

    def plot(axes: list[Axes]) -> None:
        panel = axes[0]
        for number, (label, tokens) in enumerate(lines):
            lengths = np.percentile(tokens, PERCENTILES, method="inverted_cdf")
            panel.plot(PERCENTILES, lengths, label=label, markevery=(4 + number, 12), **series(number))
        panel.axhline(limit, color="black", linewidth=0.8)
        panel.annotate(f"cut at {limit}", (1, limit), (0, 3), textcoords="offset points", fontsize=9)
        panel.set_yscale("log")
        ticks = [10, 20, 50, 100, 200, 500, 1000, 2000]
        low, high = min(int(t.min()) for _, t in lines), max(limit, *(int(np.percentile(t, 99)) for _, t in lines))
        panel.set_yticks([tick for tick in ticks if low / 2 <= tick <= 2 * high])
        panel.set_yticks([], minor=True)
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.set_ylim(low * 0.9, high * 1.5)
        panel.set_xlabel("Percentile of the items")
        panel.set_ylabel("Tokens, prompt included")
        panel.legend()

    medians = "; ".join(f"{label}: median {int(np.median(tokens))} tokens, {_over(tokens)} % over {limit}"
                        for label, tokens in lines)  # fmt: skip
    return draw("figure5", "Length of item texts in tokens, by percentile of the items", f"{medians}.", plot)


def _over(tokens: Int64) -> str:
    """The percentage of texts that are cut."""
    return f"{100 * float((tokens > TextSettings().text_length).mean()):.2f}"
