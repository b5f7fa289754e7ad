#!/usr/bin/env bash
# numpy 2.4.6 on Python 3.11.7: np.load, called by several threads, refuses good .npy files now and then.
#
# Expected: as with one thread, every file is read, since each thread has a file of its own.
# Seen: "SystemError: AST constructor recursion depth mismatch (before=36, after=32)". np.load has ast.literal_eval read a
# file's header; Python up to 3.11.7 and 3.12.1 counts the depth of the tree for all threads at once (python/cpython#106905),
# and a search for garbage amid a header lets another thread in. A loader of volumes met it once in some hundred runs
# of its tests. Here every such search waits a moment, so that it is met in each run: 12 to 15 of 20,000 calls fail with
# four threads, none with one. Exit code 1 if this is no longer so, as on a later Python.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy==2.4.6
"$place/venv/bin/python" - "$place" <<'PROGRAM'
import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

FILES = [Path(sys.argv[1]) / f"{number}.npy" for number in range(10)]
for number, file in enumerate(FILES):
    np.save(file, np.full((6, 9, 9), number, np.uint8))


def read(number):
    try:
        return np.load(FILES[number % 10])[0, 0, 0] == number % 10
    except SystemError as error:
        return str(error)


def count(threads):
    with ThreadPoolExecutor(threads) as pool:
        return [found for found in pool.map(read, range(20000)) if found != True]


def pause(*_):
    time.sleep(0.0005)


gc.callbacks.append(pause)
gc.set_threshold(20)
alone, together = count(1), count(4)
gc.callbacks.clear()
print(f"Python {sys.version.split()[0]}, numpy {np.__version__}")
print(f"one thread: {len(alone)} of 20,000 calls failed; four threads: {len(together)}, such as {together[:1]}")
sys.exit(not (not alone and together and all("recursion depth mismatch" in found for found in together)))
PROGRAM
