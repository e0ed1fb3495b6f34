"""The codes of a quantizer and all state that they learn by."""
