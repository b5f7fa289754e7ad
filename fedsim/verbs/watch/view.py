"""A look at a run as at most 80 columns of a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from statistics import fmean, median
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.config.train import LESS_IS_BETTER
from fedsim.errors import one_line
from fedsim.runfolder.lock import STILL_SECONDS
from fedsim.runfolder.messages import ENDED
from fedsim.runfolder.screen import METRICS, SPLITS, number
from fedsim.verbs.watch.looking import Look

WIDTH = 80
MOST_METRICS, MOST_MESSAGES = 6, 4
STEPS = "▁▂▃▄▅▆▇█"


def view(look: Look, console: Console) -> RenderableType:
    """Return what there is to see; ``console`` says which signs it can show."""
    parts: list[RenderableType] = [heading(look), state(look), progress(look)]
    if look.rounds:
        parts.append(scores(look))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in lines(look, not console.options.ascii_only):
        facts.add_row(Text(name, "bold"), Text(one_line(text)))
    for text in look.warnings:
        facts.add_row(Text("warning", "bold yellow"), Text(one_line(text), "yellow"))
    told = [text[len("2026-01-01T") :] for text in look.messages if not text.partition(" ")[2].startswith(ENDED)]
    for place, text in enumerate(told[-MOST_MESSAGES:]):
        facts.add_row(Text("" if place else "said", "bold"), Text(text, "dim"))
    return Group(*parts, facts)


def heading(look: Look) -> Text:
    """What runs."""
    words = look.words
    named = [(words.get(section) or {}).get("name") for section in ("algorithm", "model", "data")]
    named += [f"{(words.get('clients') or {}).get('count')} clients", f"seed {words.get('seed')}"]
    return Text(one_line(f"{look.folder}: {', '.join(map(str, named))}"), "bold")


def state(look: Look) -> Text:
    """Whether somebody is at work, and how the run ended where it has."""
    if look.results is not None:
        best = f", best round {look.results.get('best_round')}" if look.results.get("best_round") else ""
        return Text(one_line(f"{look.results.get('status')} after round {look.results.get('rounds')}{best}"), "green")
    if look.holder is None:
        cause = look.cause or "killed, or its machine gone"
        return Text(one_line(f"over before its end: {cause}; --resume goes on"), "red")
    sign = f"{one_line(look.holder)}, last sign {spell(look.silent)} ago"
    if look.silent > STILL_SECONDS:
        return Text(f"no sign of life, killed or suspended: {sign}", "red")
    return Text(f"at work: {sign}" if look.rounds else f"at work on round 1 or before: {sign}", "green")


def progress(look: Look) -> Table:
    """How far the run is, and how long it takes."""
    row = Table.grid(padding=(0, 1))
    words = [f"{look.round} of {look.num_rounds} rounds"]
    each, left = look.seconds_per_round, look.seconds_left
    if each is not None:
        words.append(f"{each:.1f} s each")
    if left is not None and not look.has_ended and not look.is_lost:
        words.append(f"{spell(left)} left, round {look.round + 1} since {spell(look.since_round or 0.0)}")
    row.add_row(ProgressBar(look.num_rounds, look.round, width=12), Text(", ".join(words)))
    return row


def scores(look: Look) -> Table:
    """The last round's scores, and those of the round that validation found best so far."""
    measured = [row for row in look.rounds if row.get("val")]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    if not measured:
        return table
    last, best = measured[-1], best_row(look, measured)
    for row, name in ((last, "round"), (best, "best, round")):
        for label in SPLITS.values():
            table.add_column(f"{label}\n{name} {row['round']}", justify="right")
    names = [name for name in ("loss", *METRICS) if name in last["val"]]
    first = decisive(look, last["val"])
    names = sorted(names, key=lambda name: name != first)[:MOST_METRICS]
    for name in names:
        cells = [number((row.get(split) or {}).get(name)) for row in (last, best) for split in SPLITS]
        table.add_row(METRICS.get(name, name), *cells)
    return table


def decisive(look: Look, validation: Mapping[str, Any]) -> str:
    """The metric that decides on the best round; the task's first, if nothing else is asked for."""
    named = (look.results or {}).get("best_by") or (look.words.get("evaluate") or {}).get("best_by")
    return str(named or next(iter(validation)))


def best_row(look: Look, measured: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of the best round; the first of equal ones, and the last row where nothing was a number."""
    name = decisive(look, measured[-1]["val"])
    known = [row for row in measured if row["val"].get(name) is not None]
    sign = -1 if name in LESS_IS_BETTER else 1
    return max(known, key=lambda row: sign * row["val"][name], default=measured[-1])


def lines(look: Look, has_steps: bool) -> Iterator[tuple[str, str]]:
    """Names and what belongs to them."""
    if not look.rounds:
        return
    last = look.rounds[-1]
    losses = [row.get("train_loss") for row in look.rounds]
    yield "loss", f"{number(losses[0])} in round 1, {number(losses[-1])} now{curve(losses) if has_steps else ''}"
    name = next((decisive(look, row["val"]) for row in look.rounds if row.get("val")), None)
    if name is not None and has_steps:
        values = [(row.get("val") or {}).get(name) for row in look.rounds]
        yield METRICS.get(name, name), f"validation{curve(values)}"
    yield from clients(look)
    if last.get("bytes_up") is not None:
        up, down = (sum(row.get(f"bytes_{way}") or 0 for row in look.rounds) for way in ("up", "down"))
        yield (
            "traffic",
            f"{decimal(last['bytes_up'])} up, {decimal(last['bytes_down'])} down a round; "
            f"{decimal(up)} up, {decimal(down)} down so far",
        )
    if "epsilon" in last:
        yield "privacy", f"epsilon {'no bound' if last['epsilon'] is None else format(last['epsilon'], '.4g')}"


def clients(look: Look) -> Iterator[tuple[str, str]]:
    """How the clients differ."""
    losses = sorted(row["train_loss"] for row in look.clients if row.get("train_loss") is not None)
    if losses:
        named = f"{len({row['client'] for row in look.clients})} in round {look.clients[-1]['round']}"
        yield "clients", f"{named}, loss {losses[0]:.4f} to {losses[-1]:.4f}, median {median(losses):.4f}"
    spreads = [found for row in look.rounds if (found := (row.get("diagnostics") or {}).get("clients"))]
    for split, metrics in (spreads[-1] if spreads else {}).items():
        name, moments = next(iter(metrics.items()))
        own = moments["after"]
        if own["clients"]:
            text = f"mean {number(own['mean'])}, deviation {number(own['std'])}, worst {number(own['worst'])}"
            yield "", f"{SPLITS.get(split, split)} {METRICS.get(name, name)} of {own['clients']}: {text}"


def curve(values: Sequence[float | None], width: int = 32) -> str:
    """Values as steps from the lowest to the highest, means of neighbours where there are more than fit."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    size = -(-len(known) // width)
    means = [fmean(known[start : start + size]) for start in range(0, len(known), size)]
    low, high = min(means), max(means)
    step = (high - low) / (len(STEPS) - 1) or 1.0
    return "  " + "".join(STEPS[round((value - low) / step)] for value in means)


def spell(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
