"""The parts of a first contact: one module each, with ``steps(setting) -> list[Step]``."""
