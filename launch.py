"""The only entry point: ``python launch.py``, ``torchrun ... launch.py`` and ``srun python launch.py`` alike.

An installation has it as ``fedsim.launch``, and as the command ``fedsim``. Parses the command line and calls fedsim.
What needs torch is imported inside the verbs, so that help and mistakes in a config answer at once.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from fedsim.comm.leave import keeping
from fedsim.machine.ending import end
from fedsim.machine.loading import loading
from fedsim.machine.output import fill_closed_streams, show_rows, showing
from fedsim.runfolder.place import default_folder
from fedsim.runfolder.trust import load_own, load_own_distillation
from fedsim.verbs import take_out
from fedsim.verbs.assets import assets
from fedsim.verbs.cache import cache
from fedsim.verbs.command_line import (
    IS_FIRST_RANK,
    ConfigPath,
    Out,
    Overrides,
    Ranks,
    Resume,
    RunDir,
    Saved,
    Trust,
    Verbs,
    Version,
)
from fedsim.verbs.commands import compare, plan, privacy, report, splits, sweep, watch
from fedsim.verbs.importing import import_set
from fedsim.verbs.listing import LISTINGS, Listing
from fedsim.verbs.submit import submit

# A warning of PyTorch's C++ side, as when another rank is gone, carries 15 lines of frames; errors are still shown.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

app = typer.Typer(
    cls=Verbs,
    help="Federated learning for medical imaging, simulated on many processes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("import")(import_set)
app.add_typer(assets, name="assets")
for verb in (privacy, sweep, compare, plan, report, watch, splits, take_out.predict, take_out.export, cache, submit):
    app.command()(verb)


@app.callback()
def options(version: Version = False) -> None:
    """Take what belongs to no verb."""


@app.command()
@keeping()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    trust: Trust = False,
    ranks: Ranks = None,
) -> None:
    """Run an experiment."""
    if ranks is not None:
        from fedsim.comm.start import run_ranks
        from fedsim.verbs.api import words

        code, _ = run_ranks("fedsim.launch", words(config, overrides or [], out, resume, trust), ranks)
        raise typer.Exit(code)
    with loading():
        settings = load_own(config, overrides or [], out, trust=trust)
        from fedsim import server
        from fedsim.models.encoders import load_library

        load_library(settings.model)
    server.run(settings, out or default_folder(settings.name), resume)


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check config and data and show the plan, with time and memory from a few steps of training."""
    settings = load_own(config, overrides or [])
    from fedsim.verbs.check import describe

    if IS_FIRST_RANK:
        show_rows(describe(settings))


@app.command()
@keeping()
def distill(config: ConfigPath, overrides: Overrides = None, out: Out = None, resume: Resume = False) -> None:
    """Make the sub-model that a run names in model.submodel, and distil it."""
    settings = load_own_distillation(config, overrides or [], out)
    from fedsim.verbs.distill import run as make_submodel

    make_submodel(settings, out or default_folder(settings.name), resume)


@app.command("list")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    name: Annotated[str | None, typer.Argument(help="A method, whose keys are listed.")] = None,
) -> None:
    """List what there is to choose from."""
    if name is not None:
        from fedsim.verbs.tables import keys_of
    if IS_FIRST_RANK:
        show_rows(LISTINGS[what]() if name is None else keys_of(what, name))


@app.command()
def evaluate(
    run_dir: RunDir,
    checkpoint: Saved = "best",
    data: Annotated[Path | None, typer.Option(help="YAML whose data section is a set from outside.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; RUN_DIR/evaluation/... if not given.")] = None,
    cross_site: Annotated[bool, typer.Option("--cross-site", help="Also each client's model at every site.")] = False,
    trust: Trust = False,
) -> None:
    """Evaluate a run's saved model: tables, intervals, curves and predictions as files."""
    from fedsim.runfolder.screen import make_console
    from fedsim.verbs.evaluate import evaluate_run

    found = evaluate_run(run_dir, checkpoint, trust, data, out, cross_site)
    with showing():
        for part in found:
            make_console().print(part, markup=False, soft_wrap=isinstance(part, str))


def main() -> None:
    """Run the command line."""
    fill_closed_streams()
    try:
        app()
    except SystemExit as ending:
        if isinstance(ending.code, int):
            end(ending.code)
        raise


if __name__ == "__main__":
    main()
