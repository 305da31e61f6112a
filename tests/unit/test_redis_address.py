"""URLs of a Redis: what each means, and a sentence for each that is malformed."""

from __future__ import annotations

import pytest
import redis
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from latentfarm.errors import InputError
from latentfarm.redis_address import RedisAddress, sentinels_of
from latentfarm.settings import redis_problem

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("url", "where", "options"),
    [
        ("redis://h", "redis://h", {"host": "h", "port": 6379, "db": 0}),
        ("redis://h/", "redis://h/", {"host": "h", "port": 6379, "db": 0}),
        ("redis://[::1]:1/2", "redis://[::1]:1/2", {"host": "::1", "port": 1, "db": 2}),
        ("redis:///3", "redis:///3", {"host": "localhost", "port": 6379, "db": 3}),
        (
            "redis://me:p%40s%2Fs@h/?socket_timeout=2&db=4",
            "redis://h/",
            {"host": "h", "port": 6379, "db": 4, "socket_timeout": 2.0, "username": "me", "password": "p@s/s"},
        ),
        ("unix:///r.sock?db=3", "unix:///r.sock", {"path": "/r.sock", "db": 3}),
        ("sentinel://:pw@a/s", "sentinel://a/s", {"db": 0, "password": "pw"}),
    ],
)
def test_a_url_becomes_the_arguments_of_a_connection(url: str, where: str, options: dict[str, object]) -> None:
    address = RedisAddress.parse(url)
    assert (address.where, dict(address.options)) == (where, options)
    assert address.pool().make_connection() is not None


def test_a_pool_uses_the_urls_options_before_its_defaults() -> None:
    pool = RedisAddress.parse("redis://h?socket_timeout=2").pool(socket_timeout=9, socket_connect_timeout=8)
    arguments = pool.connection_kwargs
    assert (arguments["socket_timeout"], arguments["socket_connect_timeout"]) == (2, 8)


@pytest.mark.parametrize("scheme", ["sentinel", "redis+sentinel"])
def test_sentinels_have_hosts_a_service_and_a_password_of_their_own(scheme: str) -> None:
    url = f"{scheme}://me:pw@a,b:7,[::1]:8/farm%202/3?sentinel_username=you&sentinel_password=hush&socket_timeout=1"
    address = RedisAddress.parse(url)
    assert address.hosts == (("a", 26379), ("b", 7), ("::1", 8))
    assert (address.service, address.db, address.tls) == ("farm 2", 3, False)
    assert address.options == {"db": 3, "username": "me", "password": "pw", "socket_timeout": 1.0}
    assert address.sentinel_options == {"username": "you", "password": "hush", "socket_timeout": 1.0}
    assert address.where == f"{scheme}://a,b:7,[::1]:8/farm%202/3"
    assert "hush" not in repr(address)
    pool = address.pool()
    assert isinstance(pool.make_connection(), SentinelManagedConnection)
    finder = sentinels_of(pool)
    assert finder is not None
    assert [each.connection_pool.connection_kwargs["port"] for each in finder.sentinels] == [26379, 7, 8]


@pytest.mark.parametrize(
    ("url", "data", "sentinel"),
    [
        ("sentinel://a/s", False, False),
        ("sentinel://a/s?ssl=true&ssl_ca_certs=ca.pem", True, True),
        ("rediss+sentinel://a/s?ssl_ca_certs=ca.pem", True, True),
        ("rediss+sentinel://a/s?sentinel_ssl=false&ssl_ca_certs=ca.pem", True, False),
        ("sentinel://a/s?sentinel_ssl=true&ssl_ca_certs=ca.pem", False, True),
    ],
)
def test_tls_is_for_the_servers_and_for_the_sentinels(url: str, *, data: bool, sentinel: bool) -> None:
    address = RedisAddress.parse(url)
    pool = address.pool()
    connection = pool.make_connection()
    assert isinstance(connection, SentinelManagedSSLConnection) == data
    assert ("ssl_ca_certs" in address.options) == data
    finder = sentinels_of(pool)
    assert finder is not None
    [client] = finder.sentinels
    assert issubclass(client.connection_pool.connection_class, redis.SSLConnection) == sentinel


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redsi://h", "does not begin with a known scheme; redis:// is the nearest"),
        ("SENTINEL://h/s", "sentinel:// is the nearest"),
        ("'redis://h'", "redis:// is the nearest"),
        ("h:6379", "does not begin with a known scheme"),
        ("unix:/run/redis.sock", "does not begin with a known scheme"),
        ("unix://run/redis.sock", "the path of a unix socket begins after three slashes"),
        ("unix://", "the path of a unix socket begins after three slashes"),
        ("redis://h:0", "0 is no port"),
        ("redis://h:70000", "% and two digits"),
        ("redis://me:a:b@h:c/0", "% and two digits"),
        ("redis://me:1/b@h/0", "no number of a database; in a password, / is written %2F"),
        ("redis://me:a/b@h/0", "% and two digits"),
        ("redis://h/0/1", "no number of a database"),
        ("redis://h/cache", "no number of a database"),
        ("redis://me:a#b@h", "a #, which in a password is written %23"),
        ("redis://me:1?word=@h", "in a password, ? is written %3F"),
        ("redis://h?ssl=true", "ssl is no option of redis://; for TLS, write rediss://"),
        ("redis://h?ssl_ca_certs=ca.pem", "for TLS, write rediss://"),
        ("redis://h?socket_timeot=3", "socket_timeout is the nearest"),
        ("redis://h?decode_responses=true", "an option after the ? that is not known"),
        ("redis://h?socket_timeout=0", "its option socket_timeout is not from 0.01"),
        ("redis://h?socket_timeout=nan", "its option socket_timeout is not from 0.01"),
        ("redis://h?max_connections=many", "its option max_connections is no number"),
        ("redis://h?protocol=4", "its option protocol is none of 2, 3"),
        ("redis://h?client_name=a%20b", "client_name has a character that Redis does not allow"),
        ("rediss://h?ssl_cert_reqs=maybe", "its option ssl_cert_reqs is none of required, optional, none"),
        ("sentinel://h:26379", "it has no service; write its name after the Sentinels"),
        ("sentinel://h:26379/", "it has no service"),
        ("sentinel:///farm", "the host of a Sentinel is missing"),
        ("sentinel://a,,b/farm", "the host of a Sentinel is missing"),
        ("sentinel://a:1;sentinel://b:1/farm", "Sentinels are separated by commas"),
        ("sentinel://p@a,q@b/farm", "one user and password before the first"),
        ("sentinel://a/farm/zero", "no number of a database"),
        ("sentinel://a:x/farm", "% and two digits"),
        ("sentinel://a/farm?ssl_ca_certs=ca.pem", "options for TLS; write rediss+sentinel:// or ssl=true"),
        ("sentinel://a/farm?sentinel_pasword=x", "sentinel_password is the nearest"),
    ],
)
def test_a_malformed_url_is_refused_with_its_problem_and_its_cure(url: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        RedisAddress.parse(url)
    text = str(caught.value)
    assert text.startswith("LATENTFARM_REDIS_URL is no URL of a Redis: ")
    assert problem in text
    assert "the password percent-encoded" in text


def test_sentinels_on_a_network_need_a_password_or_tls_as_a_server_does() -> None:
    assert redis_problem("sentinel://127.0.0.1,localhost:1/farm") is None
    assert redis_problem("rediss+sentinel://a.example/farm") is None
    open_ = redis_problem("sentinel://127.0.0.1,a.example:1/farm")
    assert open_ is not None
    assert (open_.fatal, "leads to a.example port 1 with neither" in open_.text) == (True, True)
    assert "Write rediss+sentinel://" in open_.text
    clear = redis_problem("sentinel://:pw@a.example/farm")
    assert clear is not None
    assert not clear.fatal
