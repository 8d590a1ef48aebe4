"""``python -m regops``: the same as the command ``regops``."""

from regops.cli import main

main()
