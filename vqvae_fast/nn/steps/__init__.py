"""The steps of a quantizer's call: arrange the vectors, choose codes, compute the losses."""
