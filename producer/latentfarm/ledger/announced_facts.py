"""What workers have announced of their models. It stays when they end, so that batches can be submitted before them."""

from __future__ import annotations

from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.model_facts import ModelFacts

_KEY = "{lf}:model_facts"


class AnnouncedFacts(LedgerClient):
    """The facts of each model, by alias, of the last heartbeat that had some."""

    def model_facts(self, model: str) -> ModelFacts | None:
        """Return the facts of a model; None if no worker has announced any, or none that this version can read."""
        with translate_errors(self.where):
            found = self.redis.hget(_KEY, model)
        return ModelFacts.parse(found) if found else None

    def all_model_facts(self) -> dict[str, ModelFacts]:
        """Return the facts of every model that was ever announced, by alias."""
        with translate_errors(self.where):
            found = self.redis.hgetall(_KEY)
        parsed = {decode(model): ModelFacts.parse(text) for model, text in found.items()}
        return {model: facts for model, facts in parsed.items() if facts is not None}
