"""latentfarm_worker: the side with the GPU. Importing it imports no torch; its modules do."""

import os

# Without it, MKL's AVX2 kernels round a row by its position in the batch, and an image's bytes would depend on others.
# MKL reads it at its first call, hence before any module of ours calls torch.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# Freed memory of one image size is often too fragmented for the next; expandable segments avoid that. CUDA reads the
# variables at its first allocation. A user's own value, under any of the names, is kept.
if not any(f"PYTORCH_{kind}ALLOC_CONF" in os.environ for kind in ("", "CUDA_", "HIP_")):
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
