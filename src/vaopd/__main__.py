"""``python -m vaopd``."""

from vaopd.cli import main

main()
