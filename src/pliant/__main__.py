"""``python -m pliant``: the command line."""

import sys

from pliant.app import main

sys.exit(main())
