"""The command lines of verbs that look at runs or start many; what they do is imported when they are called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.errors import UserError
from fedsim.machine.output import show_rows, showing
from fedsim.verbs.command_line import IS_FIRST_RANK, ConfigPath, Overrides, RunDir

Folders = Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs or sweeps.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="Test metric; clients.NAME: of own models; given again: more tables."),
]
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
    form: Annotated[
        Literal["md", "latex", "csv", "html", "flamby"],
        typer.Option("--format", help="Of the tables; flamby: the scores, as FLamby's result files have them."),
    ] = "md",
    metric: Metrics = None,
    per: Per = None,
    reach: Reach = None,
    level: Level = 0.05,
    other_data: OtherData = False,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw figures into it.")] = None,
) -> None:
    """Compare runs: tables with paired differences over seeds."""
    from fedsim.results.comparing import Wish
    from fedsim.results.flamby import flamby
    from fedsim.verbs import compare as verb

    wish = Wish(tuple(metric or ()), tuple(per or ()), level, reach, other_data)
    results, found = verb.comparisons(paths, wish)
    with showing():
        print(flamby(results, found) if form == "flamby" else verb.written(found, form, wish), end="")
    if figures is not None:
        from fedsim.results.figures.drawing import draw

        for line in draw(results, found, figures):
            print(line, file=sys.stderr)


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


def splits(
    configs: Annotated[
        list[Path], typer.Argument(metavar="CONFIG...", help="YAML files, such as configs/bench/brain_mri.yaml.")
    ],
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as data.root=DIR.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of the clients; given again: more.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Write them down as those that count.")] = False,
) -> None:
    """Compare the splits of a benchmark with those published: data, splits, clients, cohorts."""
    from fedsim.verbs import splits as verb

    seeds = seed or verb.SEEDS
    if publish and change:
        raise UserError("--publish", "changes with --set", "what stands in the file alone")
    show_rows(verb.publish(configs, seeds) if publish else verb.describe(configs, change or [], seeds))


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


def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, max=1024, help="Of the run that is planned.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="That share the ranks evenly.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="One for each rank, such as h200; its rates are stated ones.")] = None,
) -> None:
    """Predict seconds, memory and bytes of a round on more ranks, from a few blocks that are trained here."""
    from fedsim.runfolder.trust import load_own
    from fedsim.verbs.planning.describe import describe

    settings = load_own(config, overrides or [])
    show_rows(describe(settings, config, overrides or [], ranks, nodes, gpu))


def privacy(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a config spends of privacy, and who sees what; trains nothing."""
    from fedsim.runfolder.trust import load_own
    from fedsim.verbs.privacy import describe

    settings = load_own(config, overrides or [])
    if IS_FIRST_RANK:
        show_rows(describe(settings, lambda text: print(text, file=sys.stderr)))
