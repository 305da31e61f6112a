"""The doorbell: an empty Celery message that wakes a worker of a model.

Workers lease jobs from the ledger, so a lost, duplicated or late doorbell does no harm. Celery redelivers none.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import ceil
from typing import Any
from urllib.parse import quote, urlencode

import redis
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from kombu import Queue
from kombu.exceptions import OperationalError

from latentfarm.doorbell_transport import make_amqp
from latentfarm.errors import UnavailableError
from latentfarm.ledger.redis_errors import outage
from latentfarm.redis_address import RedisAddress

TASK_NAME = "latentfarm.render"
#: messages in a model's queue at most, for a batch of any size
MAX_DOORBELLS = 1_000
#: pending jobs per message: a woken worker leases until no job is pending
JOBS_PER_DOORBELL = 4
#: options for TLS that kombu reads in a URL
_KOMBU_TLS = frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"})


def queue_name(model: str) -> str:
    """Return the name of a model's Celery queue."""
    return f"render.{model}"


class _Doorbells(Celery):  # type: ignore[misc]
    """A Celery app, all of whose connections are of ``doorbell_transport``."""

    def _acquire_connection(self, pool: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - Celery's method
        """Return a connection of its own to each of Celery's tools: kombu's pool makes connections of its own class."""
        return self.connection_for_write()


def make_app(redis_url: str, *, model: str | Sequence[str] | None = None, remote_control: bool = False) -> Celery:
    """Return the Celery app on the farm's Redis. With ``model``, its worker consumes the queue of each of these models.

    Args:
        redis_url: a URL of ``RedisAddress``.
        model: the alias of the model, or the aliases of several.
        remote_control: workers answer Celery's own tools and send events to them. This needs more permissions.

    Raises:
        InputError: the URL is malformed.
    """
    # at each lost connection Celery announces a change of a later version, which concerns no doorbell
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    address = RedisAddress.parse(redis_url) if redis_url else None
    queues = [queue_name(each) for each in ([model] if isinstance(model, str) else model or ())]
    broker = _broker_of(address) if address else None
    app = _Doorbells("latentfarm", broker=broker, amqp=make_amqp(address), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_default_queue=queues[0] if queues else None,
        task_queues=[Queue(name) for name in queues] or None,
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=remote_control,
        worker_send_task_events=remote_control,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": 5,
            "socket_timeout": 15,
            "health_check_interval": 10,
            # for Celery's tools, which read it beside the URL
            **({"master_name": address.service} if address and address.service else {}),
        },
    )
    return app


def broker_url(redis_url: str) -> str:
    """Return a Redis URL in kombu's form, for what connects to Redis without ``doorbell_transport``."""
    return _broker_of(RedisAddress.parse(redis_url))


def _broker_of(address: RedisAddress) -> str:
    """Return the URL in kombu's form.

    kombu has its own scheme for unix sockets, and one URL for each Sentinel. Over TLS it verifies no certificate unless
    the URL requires it.
    """
    user, password = (quote(str(address.options.get(name, "")), safe="") for name in ("username", "password"))
    credentials = f"{user}:{password}@" if password else f"{user}@" if user else ""
    if not address.hosts:
        return f"redis+socket://{credentials}{quote(address.options['path'])}?virtual_host={address.db}"
    tls = {"ssl_cert_reqs": "required"} | {k: v for k, v in address.options.items() if k in _KOMBU_TLS}
    query = f"?{urlencode(tls)}" if address.tls else ""
    scheme = "sentinel" if address.service else "rediss" if address.tls else "redis"
    hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in address.hosts)
    return ";".join(f"{scheme}://{credentials}{host}/{address.db}{query}" for host in hosts)


def ring(client: redis.Redis, app: Celery, model: str, pending_jobs: int) -> int:
    """Fill the model's queue to one message per four pending jobs, at most 1,000. Return the number sent.

    Raises:
        UnavailableError: the broker does not answer, or accepts no message.
    """
    queue = queue_name(model)
    wanted = min(ceil(pending_jobs / JOBS_PER_DOORBELL), MAX_DOORBELLS)
    try:
        missing = wanted - client.llen(queue)
        if missing <= 0:
            return 0
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for _ in range(missing):
                app.send_task(TASK_NAME, queue=queue, producer=producer, retry=False)
    except (redis.RedisError, OperationalError) as error:
        # kombu's error has that of the transport as its cause
        origin = error.__cause__ if isinstance(error, OperationalError) else error
        where = app.connection_for_write().as_uri()
        problem = origin if isinstance(origin, UnavailableError) else outage(where, origin or error)
        text = f"the queue of model {model!r} does not accept messages: {problem or error}"
        raise UnavailableError(text, cause=problem.cause if problem else "connection") from error
    return missing
