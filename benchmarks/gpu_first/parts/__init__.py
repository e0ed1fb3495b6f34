"""What a first contact measures: one module a part, each with ``steps(setting) -> list[Step]``."""
