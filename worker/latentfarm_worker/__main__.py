"""``python -m latentfarm_worker``: one worker without a supervisor, set up by the environment."""

import sys

from latentfarm_worker.service.tasks import serve

if __name__ == "__main__":
    sys.exit(serve())
