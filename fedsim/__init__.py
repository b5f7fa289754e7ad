"""A simulator of federated learning for medical imaging; start reading at ``fedsim.server``."""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
_comm = find_spec("comm")
if _comm is None or _comm.origin is None or Path(_comm.origin).resolve().parent.parent != _ROOT:
    # Jupyter installs a package of the same name; with it in front every collective would be missing.
    raise ImportError(
        f"the package comm is {_comm and _comm.origin}, not the one beside fedsim; run from the repository's root, "
        "in an environment without Jupyter's comm"
    )
