"""What the verbs of the command line share: how mistakes are shown, and the arguments that several take.

Imports nothing slow: the command line begins here.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fedsim import __version__
from fedsim.comm.leave import LEFT, ToldToLeave
from fedsim.errors import RankError, UserError

IS_FIRST_RANK = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
#: How long another rank leaves it to the first one to tell of a mistake, where torchrun would end that one before.
TELLING_SECONDS = 30.0

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as rounds=1 train.lr=1e-3."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of what is made; runs/NAME if not given, runs/NAME_INDEX in a job array.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if any.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code of the user's that the run folder names or holds.")]
Ranks = Annotated[int | None, typer.Option(min=1, help="Start so many ranks on this machine, in place of torchrun.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, such as runs/quickstart.")]
Saved = Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which saved state.")]


def show_version(wanted: bool) -> None:
    """Print the version and end, where it is asked for."""
    if wanted:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and end.")
]


class Verbs(TyperGroup):
    """Turns a UserError into one line and exit code 2; of what all ranks meet alike the first one tells."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if IS_FIRST_RANK or isinstance(error, RankError):
                print(f"error: {error}", file=sys.stderr)
            elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                time.sleep(TELLING_SECONDS)  # torchrun ends this rank once the first one has met the mistake, too
                print(f"error: rank {os.environ['RANK']}: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except ToldToLeave as told:
            if IS_FIRST_RANK:
                print(told, file=sys.stderr)
            raise typer.Exit(LEFT) from None
        except EOFError as error:  # which click takes for a closed terminal, and shows as "Aborted." alone
            raise RuntimeError("a file or stream that ended too soon") from error
