"""Every command with a URL that leads to no usable Redis: a sentence with its cure, in bounded time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from tests.support import wrong_servers
from tests.support.invocation import invoke
from tests.support.redis_process import running_redis
from tests.support.wrong_servers import listening, tls_port

from latentfarm.errors import LatentfarmError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.ledger.server_check import check_reading, check_server
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

FEW = ("submit rows.txt --batch cats", "status", "watch cats", "recover")
COMMANDS = (
    *FEW, "status cats", "jobs cats", "job cats/0", "workers", "pause cats", "resume cats", "cancel cats", "retry cats",
    "set-priority cats 3", "delete cats --yes", "gc cats", "wait cats", "fetch cats -o out", "results cats",
    "verify cats", "recover --dry-run",
)  # fmt: skip
HERE = "127.0.0.1"
QUICK = "socket_timeout=0.2&socket_connect_timeout=0.2"


@pytest.fixture(scope="module")
def urls(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of each case."""
    folder = tmp_path_factory.mktemp("wrong")
    with ExitStack() as stack:

        def start(name: str, *options: str) -> int:
            return stack.enter_context(running_redis(folder / name, *options))

        plain, full = start("plain"), start("full", "--maxclients", "1")
        held = redis.Redis(port=full)
        held.ping()
        stack.callback(held.close)
        with redis.Redis(port=plain) as admin:
            admin.acl_setuser("idle", enabled=True, passwords=["+x"])
            admin.acl_setuser("keyless", enabled=True, passwords=["+x"], categories=["+@all"])
        with_tls, authority = stack.enter_context(tls_port(plain))
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        (folder / "file").touch()
        with socket.create_server((HERE, 0)) as server:
            closed = server.getsockname()[1]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "left.sock"))
        replies = {
            name: f"redis://{HERE}:{stack.enter_context(listening(reply))}"
            for name, reply in {
                "http": wrong_servers.speak_http,
                "memcached": wrong_servers.speak_memcached,
                "ssh": wrong_servers.speak_ssh,
                "hangs up": wrong_servers.hang_up,
            }.items()
        }
        yield replies | {
            "silent": f"redis://{HERE}:{stack.enter_context(listening(wrong_servers.be_silent))}?{QUICK}",
            "plain": f"redis://{HERE}:{plain}",
            "sentinel": f"redis://{HERE}:{start('sentinel', '--sentinel')}",
            "cluster": f"redis://{HERE}:{start('cluster', '--cluster-enabled', 'yes')}",
            "database": f"redis://{HERE}:{plain}/99",
            "s3": servers.s3_endpoint_url.replace("http", "redis"),
            "tls": f"redis://{HERE}:{with_tls}",
            "no tls": f"rediss://{HERE}:{plain}?{QUICK}",
            "unknown ca": f"rediss://{HERE}:{with_tls}",
            "other host": f"rediss://[::ffff:{HERE}]:{with_tls}?ssl_ca_certs={folder / 'ca.pem'}",
            "no ca file": f"rediss://{HERE}:{with_tls}?ssl_ca_certs=/nowhere/ca.pem",
            "empty ca file": f"rediss://{HERE}:{with_tls}?ssl_ca_certs={folder / 'file'}",
            "tls works": f"rediss://{HERE}:{with_tls}?ssl_ca_certs={folder / 'ca.pem'}",
            "password": f"redis://:wrong@{HERE}:{start('locked', '--requirepass', 's')}",
            "user": f"redis://stranger:wrong@{HERE}:{plain}",
            "no rights": f"redis://idle:x@{HERE}:{plain}",
            "no keys": f"redis://keyless:x@{HERE}:{plain}",
            "closed": f"redis://{HERE}:{closed}",
            "unknown host": "redis://no-such-host.invalid",
            "no socket": f"unix://{folder / 'none.sock'}",
            "file": f"unix://{folder / 'file'}",
            "folder": f"unix://{folder}",
            "left socket": f"unix://{folder / 'left.sock'}",
            "long path": f"unix://{folder}/{'x' * 150}",
            "maxclients": f"redis://{HERE}:{full}",
            "scheme": f"redsi://{HERE}:{plain}",
            "slash": f"redis://me:pass/word@{HERE}:{plain}",
            "replica": f"redis://{HERE}:{start('replica', '--replicaof', HERE, str(plain))}",
            "stale": f"redis://{HERE}:{start('stale', '--replicaof', HERE, '1', '--replica-serve-stale-data', 'no')}",
            "eviction": f"redis://{HERE}:{start('eviction', '--maxmemory-policy', 'allkeys-lru')}",
            "volatile": f"redis://{HERE}:{start('volatile', '--maxmemory-policy', 'volatile-ttl')}",
        }


PROTOCOL = "does not speak the protocol of Redis; correct host and port in LATENTFARM_REDIS_URL"
AUTH = "refuses the user or the password; correct the user and the password in LATENTFARM_REDIS_URL"
RIGHTS = "docs/security/redis-acl.txt"
SOCKET = "start it, or correct the path in LATENTFARM_REDIS_URL"
CURES = {
    "sentinel": "write sentinel://HOST:PORT/SERVICE",
    "cluster": "without cluster mode",
    "database": "it has no database of this number; correct the number at the end of LATENTFARM_REDIS_URL",
    "http": PROTOCOL,
    "s3": PROTOCOL,
    "memcached": PROTOCOL,
    "ssh": PROTOCOL,
    "tls": "a port with TLS needs rediss://",
    "no tls": "a port without TLS needs redis://",
    "unknown ca": "name its CA with ?ssl_ca_certs=/path/ca.pem",
    "other host": "the host as the certificate does",
    "no ca file": "correct the paths of the files for TLS in LATENTFARM_REDIS_URL",
    "empty ca file": "the file that ssl_ca_certs names contains no certificate",
    "password": AUTH,
    "user": AUTH,
    "no rights": RIGHTS,
    "no keys": RIGHTS,
    "closed": "Connection refused; start it, or correct host and port in LATENTFARM_REDIS_URL",
    "unknown host": "correct host and port in LATENTFARM_REDIS_URL, or repair the network",
    "silent": "correct host and port in LATENTFARM_REDIS_URL, or repair the network",
    "hangs up": "correct host and port in LATENTFARM_REDIS_URL",
    "no socket": SOCKET,
    "file": SOCKET,
    "folder": SOCKET,
    "left socket": SOCKET,
    "long path": "move the socket to a shorter path",
    "maxclients": "raise maxclients of the Redis server",
    "scheme": "redis:// is the nearest",
    "slash": "in a password, each of",
    "stale": "it is a replica without its primary; wait for the failover to end, or repair the replication",
}
#: one of each kind of error
WITH_ALL_COMMANDS = {"sentinel", "cluster", "database", "http", "password", "no rights", "closed", "stale", "scheme"}
MALFORMED = {"scheme", "slash"}
#: only what writes is refused
READABLE = {
    "replica": "it is a read-only replica; wait for the failover to end, or correct LATENTFARM_REDIS_URL",
    "eviction": "its maxmemory-policy is allkeys-lru; set it to noeviction",
    "volatile": "its maxmemory-policy is volatile-ttl; set it to noeviction",
}


def wrong(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"redis_url": url, "allow_insecure_redis": True})


def finding(settings: Settings) -> str:
    """Return what ``doctor`` reports about Redis."""
    with pytest.raises(LatentfarmError) as caught:
        check_server(Ledger.connect(settings.require().redis_url), queue_keys=["render.mini:probe"])
    return str(caught.value)


@pytest.mark.parametrize("case", CURES)
def test_every_command_names_what_is_wrong_and_the_cure(
    case: str, urls: dict[str, str], servers: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("a cat\n")
    settings = wrong(servers, urls[case])
    assert CURES[case] in finding(settings)
    for command in COMMANDS if case in WITH_ALL_COMMANDS else FEW:
        began = time.monotonic()
        code, text = invoke(settings, *command.split())
        assert code == (2 if case in MALFORMED else 3), (command, text)
        assert CURES[case] in text, (command, text)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("case", READABLE)
def test_doctor_names_a_server_that_loses_or_refuses_jobs(case: str, urls: dict[str, str], servers: Settings) -> None:
    settings = wrong(servers, urls[case])
    assert READABLE[case] in finding(settings)
    assert invoke(settings, "status")[0] == 0


def test_a_check_that_only_reads_finds_what_a_server_reports(urls: dict[str, str]) -> None:
    assert "it is a replica, and only reading works" in check_reading(Ledger.connect(urls["replica"]))
    for case in ("eviction", "volatile", "sentinel", "cluster"):
        with pytest.raises(UnavailableError) as caught:
            check_reading(Ledger.connect(urls[case]))
        assert {**CURES, **READABLE}[case] in str(caught.value)


def test_a_trusted_certificate_is_used(urls: dict[str, str], settings: Settings) -> None:
    assert "writes work" in check_server(Ledger.connect(urls["tls works"]), queue_keys=["render.mini:probe"])
    assert invoke(wrong(settings, urls["tls works"]), "status")[0] == 0
