"""Times flash-kmeans and torch's addmm + argmin beside the search, and judges the goals."""

import torch

from benchmarks.gpu import search
from benchmarks.gpu.goals import goals
from benchmarks.gpu_first.device import device_of
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import OURS, flash_kmeans, ours_gpu, torch_addmm

_PEERS = (OURS, flash_kmeans.PEER, torch_addmm.PEER, ours_gpu.CUDA)
_SHAPES = [Shape(65536, 8192, d) for d in (64, 256, 8)]
_ROUNDS = 3


def steps(setting: Setting) -> list[Step]:
    """Return a step for each shape and dtype."""
    gpu = device_of(setting)
    made = []
    for shape in [Shape(64, 40, 8)] if setting.rehearse else _SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")

            def contest(emit: Emit, shape=shape, dtype=dtype, name=name) -> None:
                vectors = gaussian(shape, dtype, device=gpu.device)
                entry = search.compare(vectors, gpu, 1 if setting.rehearse else _ROUNDS, _PEERS)
                for peer, line in entry["contenders"].items():
                    slower = line["times_slower_than_ours"]
                    emit(
                        contender=peer,
                        us=1e6 * line["seconds"]["median"],
                        in_graph_us=line["seconds_in_graph"] and 1e6 * line["seconds_in_graph"],
                        violating_share=line["violating"],
                        ours_is_faster=slower and slower["median"],
                    )
                for peer, why in (entry["failed"] | entry["skipped"]).items():
                    emit(contender=peer, not_run=why)
                for goal in goals([entry], gpu.name):
                    if goal.measured is not None:
                        emit(**goal._asdict())

            made.append(Step(f"{shape.name} {name}", 90, contest))
    return made
