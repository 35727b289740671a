"""Where events come from: one module per source."""

from __future__ import annotations

from typing import Any, cast

from deepinterest.config import (
    SCHEMAS,
    AmazonConfig,
    CompleteJourneyConfig,
    DataConfig,
    EventFileConfig,
    GloboConfig,
    MovieLensConfig,
    ReferenceDataConfig,
    SyntheticConfig,
    TaobaoConfig,
)
from deepinterest.data.events import Events
from deepinterest.data.sources import (
    amazon,
    completejourney,
    event_file,
    globo,
    movielens,
    reference,
    synthetic,
    taobao,
)
from deepinterest.errors import UserError


def load(config: DataConfig) -> Events:
    """The events that `config` names; raises UserError where the source or its settings are wrong."""
    match config.name:
        case "amazon":
            return amazon.load(cast(AmazonConfig, config))
        case "completejourney":
            return completejourney.load(cast(CompleteJourneyConfig, config))
        case "events":
            return event_file.load(cast(EventFileConfig, config))
        case "globo":
            return globo.load(cast(GloboConfig, config))
        case "movielens":
            return movielens.load(cast(MovieLensConfig, config))
        case "taobao":
            return taobao.load(cast(TaobaoConfig, config))
        case "reference":
            return reference.load(cast(ReferenceDataConfig, config))
        case "synthetic":
            return synthetic.generate(cast(SyntheticConfig, config))
    raise _unknown(config)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """What tells one state of the source from another, apart from the settings themselves; ready for JSON."""
    match config.name:
        case "amazon":
            return amazon.fingerprint(cast(AmazonConfig, config))
        case "completejourney":
            return completejourney.fingerprint()
        case "events":
            return event_file.fingerprint(cast(EventFileConfig, config))
        case "globo":
            return globo.fingerprint(cast(GloboConfig, config))
        case "movielens":
            return movielens.fingerprint(cast(MovieLensConfig, config))
        case "taobao":
            return taobao.fingerprint(cast(TaobaoConfig, config))
        case "reference":
            return reference.fingerprint(cast(ReferenceDataConfig, config))
        case "synthetic":
            return synthetic.fingerprint()
    raise _unknown(config)


def _unknown(config: DataConfig) -> UserError:
    *others, last = sorted(SCHEMAS["data"])
    return UserError(f"data.name is {config.name!r}: choose {', '.join(others)} or {last}.")
