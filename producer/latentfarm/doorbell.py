"""The doorbell: a Celery message without content that says "there is work for this model".

A lost, doubled or late doorbell does no harm, for what to render is leased from the ledger. That is why Celery's
visibility timeout may be long and its redelivery slow.
"""

from __future__ import annotations

from math import ceil
from urllib.parse import parse_qsl, urlencode, urlparse

import redis
from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError

from latentfarm.errors import UnavailableError

TASK_NAME = "latentfarm.render"
#: messages waiting in a model's queue, however large the batch
MAX_DOORBELLS = 1_000
#: waiting jobs for each message: one worker wakes and leases until nothing is left
JOBS_PER_DOORBELL = 4
#: far above any task, since nothing depends on Celery's redelivery
_VISIBILITY_TIMEOUT_S = 6 * 3600


def queue_name(model: str) -> str:
    """Return the Celery queue of a model."""
    return f"render.{model}"


def make_app(redis_url: str, *, model: str | None = None) -> Celery:
    """Return the Celery app on the farm's Redis; with ``model`` its worker listens to that model's queue."""
    app = Celery("latentfarm", broker=broker_url(redis_url) if redis_url else None, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_default_queue=queue_name(model) if model else None,
        task_queues=[Queue(queue_name(model))] if model else None,
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": _VISIBILITY_TIMEOUT_S,
            "socket_connect_timeout": 5,
            "socket_timeout": 15,
            "health_check_interval": 10,
        },
    )
    return app


def broker_url(redis_url: str) -> str:
    """Return kombu's way to write a Redis URL.

    It has its own scheme for unix sockets, and over TLS it checks no certificate unless it is told to.
    """
    parsed = urlparse(redis_url)
    options = dict(parse_qsl(parsed.query))
    if parsed.scheme == "rediss":
        options.setdefault("ssl_cert_reqs", "required")
        return parsed._replace(query=urlencode(options)).geturl()
    if parsed.scheme != "unix":
        return redis_url
    options["virtual_host"] = options.pop("db", "0")
    return f"redis+socket://{parsed.netloc}{parsed.path}?{urlencode(options)}"


def ring(client: redis.Redis, app: Celery, model: str, waiting_jobs: int) -> int:
    """Fill the model's queue up to what ``waiting_jobs`` deserve; return how many messages were sent.

    Raises:
        UnavailableError: the broker does not answer.
    """
    queue = queue_name(model)
    wanted = min(ceil(waiting_jobs / JOBS_PER_DOORBELL), MAX_DOORBELLS)
    try:
        missing = wanted - client.llen(queue)
        if missing <= 0:
            return 0
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for _ in range(missing):
                app.send_task(TASK_NAME, queue=queue, producer=producer, retry=False)
    except (redis.RedisError, OperationalError) as error:
        raise UnavailableError(f"the doorbell of {model!r} cannot be rung: {error}") from error
    return missing
