"""`python bench NAME`: see harness/command.py."""

import sys

from harness.command import main

sys.exit(main(sys.argv[1:]))
