"""latentfarm_worker: the side with the GPU. Importing it imports no torch; its modules do."""

import os

# Without it, MKL's AVX2 kernels round a row by its position in the batch, and an image's bytes would depend on others.
# MKL reads it at its first call, hence before any module of ours calls torch.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
