"""The steps of a quantizer's call: where vectors lie, which codes they get, what that costs."""
