"""The only entry point: ``python launch.py``, ``torchrun ... launch.py`` and ``srun python launch.py`` alike.

Parses the command line and calls fedsim. What needs torch is imported inside the verbs, so that help and
mistakes in a config answer at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fedsim import __version__
from fedsim.errors import RankError, UserError
from fedsim.machine.output import fill_closed_streams, show_rows, showing
from fedsim.runfolder.trust import load_own, load_own_distillation
from fedsim.verbs.commands import compare, sweep
from fedsim.verbs.importing import import_set
from fedsim.verbs.listing import LISTINGS

# A warning of PyTorch's C++ side, as when another rank is gone, carries 15 lines of frames; errors are still shown.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
IS_FIRST_RANK = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
Listing = Literal["algorithms", "models", "data", "assets", "configs"]


class Verbs(TyperGroup):
    """Turns a UserError into one line and exit code 2; of what all ranks meet alike the first one tells."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if IS_FIRST_RANK or isinstance(error, RankError):
                print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except EOFError as error:  # which click takes for a closed terminal, and shows as "Aborted." alone
            raise RuntimeError("a file or stream that ended too soon") from error


app = typer.Typer(
    cls=Verbs,
    help="Federated learning for medical imaging, simulated on many processes.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("import")(import_set)
app.command()(sweep)
app.command()(compare)
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as rounds=1 train.lr=1e-3."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of what is made; runs/<name> if not given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if any.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code of the user's that the run folder names or holds.")]


def show_version(wanted: bool) -> None:
    """Print the version and end, where it is asked for."""
    if wanted:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Take what belongs to no verb."""


@app.command()
def run(
    config: ConfigPath, overrides: Overrides = None, out: Out = None, resume: Resume = False, trust: Trust = False
) -> None:
    """Run an experiment."""
    settings = load_own(config, overrides or [], out, trust=trust)
    from fedsim import server

    server.run(settings, out or Path("runs") / settings.name, resume)


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check config and data and show the plan; trains nothing."""
    settings = load_own(config, overrides or [])
    from fedsim.verbs.check import describe

    if IS_FIRST_RANK:
        show_rows(describe(settings))


@app.command()
def privacy(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a config spends of privacy, and who sees what; trains nothing."""
    settings = load_own(config, overrides or [])
    from fedsim.verbs.privacy import describe

    if IS_FIRST_RANK:
        show_rows(describe(settings, lambda text: print(text, file=sys.stderr)))


@app.command()
def distill(config: ConfigPath, overrides: Overrides = None, out: Out = None, resume: Resume = False) -> None:
    """Make the sub-model that a run names in model.submodel, and distil it."""
    settings = load_own_distillation(config, overrides or [], out)
    from fedsim.verbs.distill import run as make_submodel

    make_submodel(settings, out or Path("runs") / settings.name, resume)


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")]) -> None:
    """List what there is to choose from."""
    if IS_FIRST_RANK:
        show_rows(LISTINGS[what]())


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, such as runs/quickstart.")],
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Which saved state.")] = "best",
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


if __name__ == "__main__":
    fill_closed_streams()
    app()
