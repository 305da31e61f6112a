"""What workers have announced of their models. It stays when they end, so that batches can be submitted before them."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from latentfarm.adapter_kind import AdapterKind
from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.model_facts import ModelFacts

_ADAPTER_NAMES = TypeAdapter(dict[str, tuple[str, ...]])
_KEY, _ADAPTERS = "{lf}:model_facts", "{lf}:model_adapters"


class AnnouncedFacts(LedgerClient):
    """The facts of each model, by alias, of the last heartbeat that had some."""

    def model_facts(self, model: str) -> ModelFacts | None:
        """Return the facts of a model; None if no worker has announced any, or none that this version can read."""
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            pipe.hget(_KEY, model)
            pipe.hget(_ADAPTERS, model)
            found, adapters = pipe.execute()
        facts = ModelFacts.parse(found) if found else None
        return facts and facts.model_copy(update={"adapters": _parse_adapters(adapters)})

    def all_model_facts(self) -> dict[str, ModelFacts]:
        """Return the facts of every model that was ever announced, by alias."""
        with translate_errors(self.where):
            found = self.redis.hgetall(_KEY)
        parsed = {decode(model): ModelFacts.parse(text) for model, text in found.items()}
        return {model: facts for model, facts in parsed.items() if facts is not None}

    def announced_adapters(self, model: str) -> dict[AdapterKind, tuple[str, ...]] | None:
        """Return the names of the adapters of a model by kind; None if no worker has announced them."""
        with translate_errors(self.where):
            return _parse_adapters(self.redis.hget(_ADAPTERS, model))


def _parse_adapters(text: bytes | str | None) -> dict[AdapterKind, tuple[str, ...]] | None:
    try:
        # a newer worker may have other kinds
        names = _ADAPTER_NAMES.validate_json(text or b"null")
    except ValidationError:
        return None
    return {kind: names.get(kind, ()) for kind in AdapterKind}
