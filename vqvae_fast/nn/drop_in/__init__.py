"""The quantizers of vector-quantize-pytorch, and those that are made of them."""
