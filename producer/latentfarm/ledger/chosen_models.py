"""The models that clients have chosen for their later requests, as AUTOMATIC1111's clients do by an option."""

from __future__ import annotations

from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

_KEY = "{lf}:chosen_models"


class ChosenModels(LedgerClient):
    """One model for each API key that has chosen one. It is a preference: a lost one is chosen again."""

    def chosen_model(self, owner: str) -> str:
        """Return the model that an API key has chosen, empty for none."""
        with translate_errors(self.where):
            found = self.redis.hget(_KEY, owner)
        return decode(found) if found else ""

    def choose_model(self, owner: str, model: str) -> None:
        """Remember a model for an API key; an empty name forgets it."""
        with translate_errors(self.where):
            if model:
                self.redis.hset(_KEY, owner, model)
            else:
                self.redis.hdel(_KEY, owner)
