"""``python -m latentfarm`` is the command ``latentfarm``."""

from latentfarm.cli import main

main()
