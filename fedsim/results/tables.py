"""Comparisons as text: Markdown, LaTeX, CSV, HTML."""

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from fedsim.results.comparing import BYTES, CLOCK, STEPS, Comparison, Wish
from fedsim.results.reading import CLIENTS

BIG = 1e6
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


@dataclass(frozen=True)
class Shown:
    """A table as texts. ``bold``: row and column of the cell in bold, if any."""

    title: str
    header: list[str]
    rows: list[list[str]]
    bold: tuple[int, int] | None
    notes: list[str]


def shown(one: Comparison, wish: Wish) -> Shown:
    """Return a comparison as a table for people."""
    numbers, percent = one.numbers, f"{100 * (1 - wish.level):g} %"
    header = ["contender", "seeds", one.metric, f"minus the best [{percent}]", "p", "MB", "seconds", "client steps"]
    makers: list[Callable[[pd.Series], str]] = [
        lambda row: str(row["contender"]),
        lambda row: str(row["seeds"]),
        lambda row: spread(row["mean"], row["spread"]),
        lambda row: interval(row),
        lambda row: p_value(row.get("p_holm")),
        lambda row: amount((row["bytes_up"] + row["bytes_down"]) / BIG),
        lambda row: amount(row["seconds"]),
        lambda row: amount(row[STEPS]),
    ]
    if numbers["epsilon"].notna().any():
        header.append("epsilon")
        makers.append(lambda row: amount(row["epsilon"]))
    if numbers["deviation"].notna().any():
        header.append("deviation")
        makers.append(lambda row: amount(row["deviation"]))
    for column, word in ((BYTES, "MB"), (STEPS, "client steps")):
        budget = numbers[f"budget_{column}"].iloc[0]
        if not math.isnan(budget) and len(numbers) > 1:
            header.append(f"{one.metric} at {amount(budget / BIG if column == BYTES else budget)} {word}")
            makers.append(equal_maker(column))
    if wish.reach is not None:
        header.append(f"MB to validation {wish.reach:g}")
        makers.append(lambda row: reach_text(row, BYTES, BIG))
        if f"{CLOCK}_to_reach" in numbers:
            header.append(f"simulated seconds to validation {wish.reach:g}")
            makers.append(lambda row: reach_text(row, CLOCK, 1))
    rows = [[make(row) for make in makers] for _, row in numbers.iterrows()]
    names = list(numbers["contender"])
    bold = (names.index(one.best), 2) if one.holds and one.best is not None else None
    title = ", ".join([one.metric, *(f"{key} {value}" for key, value in one.values.items())])
    return Shown(title, header, rows, bold, [*legend(one, wish), *one.notes])


def legend(one: Comparison, wish: Wish) -> list[str]:
    """Return what the columns are."""
    num = len(one.scores.columns)
    pairs = num * (num - 1) // 2
    own = one.metric.startswith(CLIENTS)
    what = "the mean over the round's clients, each one's own model on its own images, " if own else ""
    verdict = "in bold: its difference to each other one holds" if one.holds else "none in bold: no best one that holds"
    return [
        f"{one.metric} of the test, {what}at the best validation round: mean ± standard deviation over seeds",
        f"minus the best: paired over seeds, Student's t; p: paired t-test, corrected for all {pairs} pairs (Holm)",
        f"a difference holds where p < {wish.level:g} and the bootstrap's interval leaves zero out; {verdict}",
        "MB, seconds and client steps (local steps, of all models and phases) are of all rounds, means over seeds",
        "at equal MB or steps: the score within what the seed's cheapest contender spent in all; mean in the head",
    ]


def equal_maker(column: str) -> Callable[[pd.Series], str]:
    """Return what shows the score at equal bytes or steps."""
    return lambda row: spread(row[f"mean_at_equal_{column}"], row[f"spread_at_equal_{column}"])


def spread(mean: float, deviation: float) -> str:
    """Return mean ± standard deviation."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def interval(row: pd.Series) -> str:
    """Return a difference with its interval."""
    mean = row.get("difference", math.nan)
    if math.isnan(mean):
        return "-"
    return f"{mean:+.3f}" if math.isnan(row["low"]) else f"{mean:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def p_value(p: float | None) -> str:
    """Return a p-value."""
    if p is None or math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def amount(value: float) -> str:
    """Return a quantity with three digits, or all before the point."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def reach_text(row: pd.Series, column: str, unit: float) -> str:
    """Return what is spent until a score, and how many seeds get there where not all do; a dash where nothing tells."""
    number = row[f"{column}_seeds_that_reach"]
    if pd.isna(number):
        return "-"
    seeds = f" ({number} of {row['seeds']})" if number < row["seeds"] else ""
    return amount(row[f"{column}_to_reach"] / unit) + seeds


def markdown(tables: Sequence[Shown]) -> str:
    """Return tables as Markdown."""
    parts = []
    for one in tables:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in marked(one, lambda text: f"**{text}**")]
        lines = [f"| {' | '.join(row)} |" for row in [one.header, ["---"] * len(one.header), *rows]]
        parts.append("\n".join([f"**{one.title}**", "", *lines, "", *(f"- {note}" for note in one.notes)]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Shown]) -> str:
    """Return tables for LaTeX with the package booktabs."""
    parts = []
    for one in tables:
        rows = marked(
            Shown(one.title, one.header, [[escaped(cell) for cell in row] for row in one.rows], one.bold, one.notes),
            lambda text: f"\\textbf{{{text}}}",
        )
        lines = [" & ".join(row) + r" \\" for row in rows]
        header = " & ".join(map(escaped, one.header)) + r" \\"
        columns = "l" + "r" * (len(one.header) - 1)
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines, r"\bottomrule"]
        notes = [f"% {note}" for note in one.notes]
        parts.append("\n".join([f"% {one.title}", *notes, *body, r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return text as LaTeX shows it."""
    whole = re.sub(r"[\\~^&%$#_{}]", lambda found: LATEX[found[0]], text)
    return whole.replace("±", r"$\pm$").replace("<", "$<$")


def web(tables: Sequence[Shown]) -> str:
    """Return tables as a piece of HTML."""
    parts = []
    for one in tables:
        plain = Shown(one.title, one.header, [[html.escape(c) for c in row] for row in one.rows], one.bold, one.notes)
        rows = marked(plain, lambda text: f"<strong>{text}</strong>")
        head = "".join(f"<th>{html.escape(name)}</th>" for name in one.header)
        body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in one.notes)
        caption = f"<caption>{html.escape(one.title)}</caption>"
        table = f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        parts.append(f"{table}\n<ul>\n{notes}\n</ul>")
    return "\n".join(parts) + "\n"


def marked(one: Shown, bold: Callable[[str], str]) -> list[list[str]]:
    """Return the rows with the best one's score in bold."""
    rows = [list(row) for row in one.rows]
    if one.bold is not None:
        row, column = one.bold
        rows[row][column] = bold(rows[row][column])
    return rows


def csv(comparisons: Sequence[Comparison]) -> str:
    """Return the numbers of all tables below each other, unrounded, with the bootstrap's intervals."""
    parts = []
    for one in comparisons:
        is_best = one.numbers["contender"].eq(one.best) & one.holds
        front = pd.DataFrame({"metric": one.metric, **one.values}, index=one.numbers.index)
        parts.append(pd.concat([front, one.numbers, is_best.rename("is_best")], axis=1))
    text: str = pd.concat(parts).to_csv(index=False)
    return text
