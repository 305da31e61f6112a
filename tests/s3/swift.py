"""OpenStack Swift with its S3 API on one machine: one device, one replica, four processes."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

from tests.support.machines import free_ports

from latentfarm.local.process import ManagedProcess

_KINDS = ("account", "container", "object")
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_farm_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def start_swift(bin_folder: Path, folder: Path) -> tuple[int, list[ManagedProcess], tuple[str, str]]:
    """Start the servers; return the proxy's port, the processes and the keys."""
    ports = dict(zip((*_KINDS, "proxy"), free_ports(4), strict=True))
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = latentfarm\n")
    for kind in _KINDS:
        builder = [str(bin_folder / "swift-ring-builder"), str(folder / f"{kind}.builder")]
        for step in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{ports[kind]}/d1", "1"], ["rebalance"]):
            subprocess.run([*builder, *step], check=True, capture_output=True)
    processes = []
    for kind, port in ports.items():
        default = f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = {getpass.getuser()}\n"
        default += f"swift_dir = {folder}\ndevices = {folder / 'devices'}\nmount_check = false\n"
        own = f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        file = folder / f"{kind}.conf"
        file.write_text(default + (_PROXY if kind == "proxy" else own))
        command = [str(bin_folder / f"swift-{kind}-server"), str(file), "--verbose"]
        log = folder / f"{kind}.log"
        processes.append(ManagedProcess(f"swift-{kind}", command, log=log, env={"SWIFT_TEST_CONFIG_FILE": ""}))
    return ports["proxy"], processes, ("farm:tester", "testing")
