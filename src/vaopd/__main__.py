"""Starts the command line for ``vaopd`` and ``python -m vaopd``."""

import sys
import warnings

from vaopd import cli


def main() -> None:
    """Run the command line without the warnings of other packages, which are for developers.

    ``python -W default -m vaopd``, or PYTHONWARNINGS, shows them.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"vaopd\.")
    cli.main()


if __name__ == "__main__":
    main()
