"""Serves many short runs of one image by a few machines that are made ahead.

python examples/pool.py app.elf RUNS
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from tender import Image, VmConfig, VmPool, VmResult

THREADS = 2


def main(path: str, runs: str) -> None:
    with (
        Image.open(path) as image,
        VmPool(image, VmConfig(mem=16), size=THREADS) as pool,
        ThreadPoolExecutor(THREADS) as executor,
    ):

        def serve(number: int) -> VmResult:
            """Each run has arguments of its own, and finds nothing of the run before."""
            return pool.run((f"request-{number}",), timeout=60).check()

        for number, result in enumerate(executor.map(serve, range(int(runs)))):
            console = result.console or b""
            print(f"run {number}: status {result.status}, {len(console)} bytes of console")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
