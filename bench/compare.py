"""`tender bench compare` from a checkout: bench/compare.py REV_A [REV_B]. The work is in tender/bench/revisions.py."""

import sys

from tender.bench.revisions import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
