"""What is known of a published version, into MongoDB's collection `models`. `python -m forecast.report`

Told again, it is the same document: it may be called as often as it takes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .store import database, patiently

COLLECTION = "models"


def main() -> None:
    directory = Path(os.environ["MODEL_DIRECTORY"])
    known = json.loads((directory / "metadata.json").read_text())
    known["metrics"] = json.loads((directory / "metrics.json").read_text())
    name = f"{known['model']}/{known['version']}"
    models = database()[COLLECTION]
    patiently(lambda: models.replace_one({"_id": name}, known, upsert=True))


if __name__ == "__main__":
    main()
