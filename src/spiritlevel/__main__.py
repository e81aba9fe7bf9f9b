"""`python -m spiritlevel` is the command `spiritlevel`."""

import sys

from spiritlevel.cli import main

sys.exit(main())
