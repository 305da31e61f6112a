"""The command ``latentfarm``; also ``python -m latentfarm``."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # an interrupt during the imports ends this process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from latentfarm.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
