"""`python -m wmgym` runs the command `wmgym`."""

import sys

from wmgym.cli import main

sys.exit(main())
