#!/usr/bin/env bash
# Copy into the chart what is made elsewhere: a chart can only read files of its own folder. Tests compare them.
set -euo pipefail

cd "$(dirname "$0")/.."
rm -f helm/tidegate/files/dashboards/*.json
cp monitoring/dashboards/*.json helm/tidegate/files/dashboards/
python=.venv/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=. "$python" scripts/chart_rules.py
"$python" scripts/chart_schema.py
