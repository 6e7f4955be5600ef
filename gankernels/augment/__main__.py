"""``python -m gankernels.augment``."""

import sys

from gankernels.augment.preview import main

if __name__ == "__main__":
    sys.exit(main())
