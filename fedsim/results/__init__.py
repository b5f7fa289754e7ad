"""Reading run folders back and comparing them; imports neither torch nor comm."""

from fedsim.results.reading import SCHEMA, Results, load

__all__ = ["SCHEMA", "Results", "load"]
