"""`tender bench boot` from a checkout: bench/boot.py [OPTIONS] [IMAGE]. The work is in tender/bench/."""

import sys

from tender.bench.boot import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
