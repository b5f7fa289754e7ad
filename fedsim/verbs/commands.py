"""The command lines of ``sweep``, ``compare`` and ``watch``; what they do is imported when they are called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.errors import UserError
from fedsim.machine.output import show_rows, showing
from fedsim.verbs.command_line import RunDir


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
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs or sweeps.")],
    form: Annotated[Literal["md", "latex", "csv", "html"], typer.Option("--format", help="Of the tables.")] = "md",
    metric: Annotated[list[str] | None, typer.Option(help="Test metric; given again: more tables.")] = None,
    per: Annotated[list[str] | None, typer.Option(help="Config key with a table for each of its values.")] = None,
    reach: Annotated[float | None, typer.Option(help="Show the bytes until validation is as good as this.")] = None,
    level: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Rate of differences that hold by chance.")] = 0.05,
    other_data: Annotated[bool, typer.Option("--other-data", help="Compare runs on other data or splits too.")] = False,
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


def watch(
    run_dir: RunDir,
    once: Annotated[bool, typer.Option("--once", help="Show it once, for a file or a pipe.")] = False,
) -> None:
    """Show a run while it goes on, also on another machine that shares its folder; ends with the run."""
    from fedsim.verbs import watch as verb

    try:
        if not verb.watch(run_dir, once=once):
            raise typer.Exit(1)
    except KeyboardInterrupt:  # the person has seen enough; the run goes on
        raise typer.Exit(0) from None


def say(text: str) -> None:
    """Print one line at once."""
    with showing():
        print(text, flush=True)
