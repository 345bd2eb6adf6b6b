"""``python -m livetalk_model``: the ``livetalk`` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
