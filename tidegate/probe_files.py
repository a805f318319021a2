"""Reports of bias probes that an older version kept in files below its home."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from rollout.probes.base import ProbeReport, ProbeReports

log = logging.getLogger(__name__)


def adopt_reports(store: ProbeReports, folder: Path) -> None:
    """Take them over, once: they are in the store now. A damaged one is forgotten; its version is probed again."""
    for path in sorted(folder.glob("*/*.json")):
        try:
            store.save(ProbeReport.model_validate_json(path.read_text()))
        except (OSError, ValidationError) as error:
            log.warning("the report %s can't be read: %s", path, type(error).__name__)
        path.unlink(missing_ok=True)
