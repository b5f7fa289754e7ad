"""The page as text: template, style and program in one, with nothing that a browser would fetch.

Names of runs, classes and settings come from outside: the template escapes them, the program puts them in as text, and
the page's own policy lets a browser run this program alone and ask nobody for anything.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsim import __version__
from fedsim.machine.files import finite
from fedsim.results.page.content import Page

HERE = Path(__file__).parent
#: Headings of the curves, and what stands below.
TOPICS = {
    "scores": ("Scores", "Mean over seeds, in rounds that all have; the band is one standard deviation to each side."),
    "diagnostics": ("Diagnostics", "Means over seeds, as metrics.jsonl has them by phase."),
    "privacy": ("Privacy spent", "Epsilon so far."),
    "costs": ("Costs of a round", "Of all clients together."),
}


def html(page: Page) -> str:
    """Return the whole file."""
    style = (HERE / "page.css").read_text()
    script = "".join((HERE / name).read_text() for name in ("charts.js", "seeds.js", "page.js"))
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # and keys in their own order
    text: str = environment.get_template("page.html").render(
        page=page,
        topics=TOPICS,
        version=__version__,
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        data=finite({"parts": [part.charts for part in page.parts], "clients": page.clients}),
    )
    return text


def digest(text: str) -> str:
    """Return what a policy knows a style or program by, see W3C's Content Security Policy, section 2.3.1."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
