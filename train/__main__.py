"""``python -m train``: the `coralbay` command, so that torchrun can start it."""

import sys

from train.cli import main

sys.exit(main())
