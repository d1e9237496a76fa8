"""Functions run by ranks: processes of one group on this machine."""

import os
import sys

import torch
import torch.multiprocessing as mp
from torch import distributed as dist


def on_ranks(function, folder, *args, ranks=2):
    """Run ``function(rank, folder, *args)`` in ``ranks`` processes of one gloo group; raises what one of them raises."""
    mp.spawn(one_rank, args=(ranks, function, folder, args), nprocs=ranks)


def one_rank(rank, ranks, function, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    function(rank, folder, *args)
    dist.barrier()  # no rank takes the group down while another is still in it
    dist.destroy_process_group()
    # A gloo thread that still holds a tensor when Python finalizes is ended inside C++, which aborts the process
    # (github.com/pytorch/pytorch/pull/179291): leave without finalizing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
