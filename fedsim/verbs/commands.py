"""The command lines of ``sweep``, ``compare`` and ``report``; what they do is imported when they are called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.errors import UserError
from fedsim.machine.output import show_rows, showing

Folders = Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs or sweeps.")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Test metric; given again: more tables.")]
Per = Annotated[list[str] | None, typer.Option(help="Config key with a table for each of its values.")]
Reach = Annotated[float | None, typer.Option(help="Show the bytes until validation is as good as this.")]
Level = Annotated[float, typer.Option(min=0.0001, max=0.5, help="Rate of differences that hold by chance.")]
OtherData = Annotated[bool, typer.Option("--other-data", help="Compare runs on other data or splits too.")]


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="YAML file, such as configs/sweeps/federated_lora_brain_mri.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; each cell is a run folder in it.")],
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of each cell, on this host.")] = 1,
    index: Annotated[int | None, typer.Option(help="Run one cell alone, on the ranks of this job.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Show which cells are done; runs nothing.")] = False,
) -> None:
    """Run what is missing of many runs: methods, seeds, any keys."""
    from fedsim.verbs import sweep as verb

    if index is not None and (status or ranks != 1):
        raise UserError("--index", f"{index} with --status or --ranks", "--index alone: the job's own ranks take part")
    if status:
        show_rows(verb.status(file, out))
    elif index is not None:
        verb.run_at(file, out, index)
    elif not verb.run_sweep(file, out, verb.Ranks(ranks, Path(sys.argv[0]).resolve()), say):
        raise typer.Exit(1)


def compare(
    paths: Folders,
    form: Annotated[Literal["md", "latex", "csv", "html"], typer.Option("--format", help="Of the tables.")] = "md",
    metric: Metrics = None,
    per: Per = None,
    reach: Reach = None,
    level: Level = 0.05,
    other_data: OtherData = False,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw scores over rounds and costs.")] = None,
) -> None:
    """Compare runs: tables with paired differences over seeds."""
    from fedsim.results.comparing import Wish
    from fedsim.verbs import compare as verb

    wish = Wish(tuple(metric or ()), tuple(per or ()), level, reach, other_data)
    results, found = verb.comparisons(paths, wish)
    with showing():
        print(verb.written(found, form, wish), end="")
    if figures is not None:
        from fedsim.results.figures import draw

        draw(results, found, figures)


def report(
    paths: Folders,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN_DIR/report.html if not given.")] = None,
    metric: Metrics = None,
    per: Per = None,
    reach: Reach = None,
    level: Level = 0.05,
    other_data: OtherData = False,
) -> None:
    """Write runs as one HTML page that needs no network: tables, curves, clients, config."""
    from fedsim.results.comparing import Wish
    from fedsim.verbs import compare as verb

    say(str(verb.report(paths, Wish(tuple(metric or ()), tuple(per or ()), level, reach, other_data), out)))


def say(text: str) -> None:
    """Print one line at once."""
    with showing():
        print(text, flush=True)
