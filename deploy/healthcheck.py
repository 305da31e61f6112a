"""The HEALTHCHECK of both images: exit 0 if /livez returns 200.

Its address is LATENTFARM_METRICS_ADDRESS, of a server LATENTFARM_SERVER_ADDRESS. A command
that serves no /livez, such as `latentfarm wait`, is healthy as long as it runs.
"""

import os
import sys
from http.client import HTTPConnection

#: address of a server that listens on all interfaces
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 (nothing is bound here)
TIMEOUT_S = 4

address = os.environ.get("LATENTFARM_METRICS_ADDRESS") or os.environ.get("LATENTFARM_SERVER_ADDRESS", "")
host, _, port = address.rpartition(":")
if port:
    connection = HTTPConnection(LOOPBACK.get(host, host), int(port), timeout=TIMEOUT_S)
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read(1000).decode(errors='replace')}")
