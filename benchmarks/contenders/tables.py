"""What benchmarks/throughput.py prints of its reports."""

import itertools
from statistics import geometric_mean
from typing import Any

from rich.table import Table

from benchmarks.regimes import Regime


def best_settings(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each contender's fastest setting in each regime and precision."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for report in reports:
        if "error" in report:
            continue
        key = (report["regime"], report["contender"], report["precision"])
        if key not in best or report["clients_per_s"] > best[key]["clients_per_s"]:
            best[key] = report
    return list(best.values())


def table(regime: Regime, reports: list[dict[str, Any]]) -> Table:
    titles = ("contender", "type", "p x t", "clients/s", "of limit", "GiB", "start", "differs")
    shown = Table(title=f"{regime.name} (p processes of t threads; share of limit: all tokens, least; start in s)")
    for title in titles:
        shown.add_column(title, no_wrap=True)
    for report in best_settings(reports):
        shown.add_row(
            report["contender"],
            report["precision"],
            f"{report['processes']}x{report['threads']}",
            f"{report['clients_per_s']:.3g}",
            f"{report['share_all_tokens']:.0%}, {report['share_minimum']:.0%}",
            f"{report['peak_rss_bytes'] / 2**30:.2f}",
            f"{report['startup_s']:.1f}",
            f"{report['difference']:.1e}",
        )
    return shown


def leads(reports: list[dict[str, Any]], peers: list[str]) -> Table:
    """fedsim beside the best peer of equal precision, and of any: over the regimes, the mean (geometric) and the worst.

    Of the worst its share of the machine's rate, with all tokens counted.
    """
    shown = Table(
        "type", "beside", "regimes", "mean", "worst", "its share", title="fedsim's clients/s over the best peer's"
    )
    best = best_settings(reports)
    for precision, beside in itertools.product(("fp32", "bf16"), ("equal", "any")):
        ratios: list[tuple[float, float]] = []
        for mine in best:
            others = [
                other["clients_per_s"]
                for other in best
                if other["regime"] == mine["regime"]
                and other["contender"] in peers
                and (beside == "any" or other["precision"] == precision)
            ]
            if mine["contender"] == "fedsim" and mine["precision"] == precision and others:
                ratios.append((mine["clients_per_s"] / max(others), mine["share_all_tokens"]))
        if ratios:
            worst, share = min(ratios)
            figures = (f"{geometric_mean(ratio for ratio, _ in ratios):.2f}", f"{worst:.2f}", f"{share:.0%}")
            shown.add_row(precision, beside, str(len(ratios)), *figures)
    return shown
