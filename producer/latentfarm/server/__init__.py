"""The HTTP server in front of a farm: OpenAI's and AUTOMATIC1111's protocols, and the farm's own.

::

    app            the application: rooms, access checks, error answers
    openai/        /v1: images, files, batches
    a1111/         /sdapi/v1
    api/           /api: batches, jobs, images, workers, events
    interactive/   images that a client waits for, as jobs of the ledger
    live/          events and progress of the farm, followed once for all clients
    security/      keys, limits, origins, the audit log
    http/          operations, errors, bodies, server-sent events

The server has no state of its own: any number of servers serve one farm.
"""
