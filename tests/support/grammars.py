"""Rules for answers that tests ask for."""

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMS = {
    "json": {"json_schema": SCHEMA},
    "regex": {"regex": "(yes|no), [0-9]{2,4}[.]"},
    "lark": {"lark": 'start: "a" ("b" | "c")+ "d"'},
}
