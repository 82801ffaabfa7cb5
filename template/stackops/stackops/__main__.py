"""`python -m stackops` is the same as `stackops`."""

import sys

from stackops.cli import main

sys.exit(main())
