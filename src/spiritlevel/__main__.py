"""`python -m spiritlevel` is the command `spiritlevel`."""

import os
import sys

from spiritlevel.cli import main

code = main()
if os.environ.get("WORLD_SIZE", "1") != "1":
    # A thread of torch's process group may be letting go of its last tensor. If it asks for the
    # interpreter while that ends, it takes the process down, and torchrun counts the run as failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
