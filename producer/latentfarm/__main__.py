"""The command ``latentfarm``; also ``python -m latentfarm``."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # an interrupt during the imports ends this process without a traceback, as one later does
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from latentfarm.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
