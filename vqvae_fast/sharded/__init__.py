"""Codebooks that are divided over processes, for torch.distributed."""

from vqvae_fast.sharded.code_shards import CodeShards
from vqvae_fast.sharded.vector_quantizer import ShardedVectorQuantizer, sharded_state

__all__ = ["CodeShards", "ShardedVectorQuantizer", "sharded_state"]
