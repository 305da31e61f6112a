"""The HEALTHCHECK of both images: exit 0 if what runs here says that it lives.

It asks /livez at the address that LATENTFARM_METRICS_ADDRESS names. A command that serves none, such as
`latentfarm wait`, is well as long as it runs.
"""

import os
import sys
from http.client import HTTPConnection

#: where to ask a server that listens everywhere
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 (nothing is bound here)
PATIENCE_S = 4

host, _, port = os.environ.get("LATENTFARM_METRICS_ADDRESS", "").rpartition(":")
if port:
    connection = HTTPConnection(LOOPBACK.get(host, host), int(port), timeout=PATIENCE_S)
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read(1000).decode(errors='replace')}")
