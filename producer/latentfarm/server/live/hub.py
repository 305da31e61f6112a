"""Follows the events of the ledger on threads of its own, and passes them to the server's clients."""

from __future__ import annotations

from latentfarm.ledger import Ledger


class EventHub:
    """Follows the events and live reports of a farm."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
