"""``python -m convsmith``."""

import sys

from convsmith.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
