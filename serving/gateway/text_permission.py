"""Whose prompts and answers may be kept: what the policies of the traffic table say. Forbidden unless allowed."""

from __future__ import annotations

import logging

from guardrails.errors import InvalidPolicy
from guardrails.plugins import installed_catalogue
from guardrails.policy import parse_policy
from serving.specs import digest_of_text
from serving.traffic import RevisionTraffic, TrafficTable

logger = logging.getLogger("tidegate.gateway")


class TextPermission:
    """Follows traffic tables; reads each policy once."""

    def __init__(self) -> None:
        self._allowed: dict[str, bool] = {}

    def table_applied(self, table: TrafficTable) -> None:
        """Read the policies that are new, forget those that are gone."""
        self._allowed = {
            digest: self._allowed[digest] if digest in self._allowed else _allows(digest, text)
            for digest, text in table.policies.items()
        }

    def __call__(self, revision: RevisionTraffic) -> bool:
        """Whether this revision's policy lets its texts be kept."""
        return self._allowed.get(revision.policy, False)


def _allows(digest: str, text: str) -> bool:
    if digest_of_text(text) != digest:
        return False
    try:
        return parse_policy(text, installed_catalogue()).log_text
    except InvalidPolicy:
        logger.warning("policy %s can't be read here, so texts of its versions are not kept", digest[:12])
        return False
