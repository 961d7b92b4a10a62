"""Write catalogue.json, which is read without torch: `python -m edgefl_exporter.zoo` after a change of the zoo."""

from __future__ import annotations

import json

from edgefl_exporter.catalogue import CATALOGUE
from edgefl_exporter.zoo import described

CATALOGUE.write_text("[\n" + ",\n".join(json.dumps(row) for row in described()) + "\n]\n")
