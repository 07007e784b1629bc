"""What commands print with --json, compared with the published schemas."""

import json
from pathlib import Path

import jsonschema

SCHEMAS = Path(__file__).parents[2] / "schemas"


def check(content, name):
    """The content fits the schema of this name."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(content)
