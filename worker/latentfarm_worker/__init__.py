"""latentfarm_worker: the side with the GPU. Importing it imports no torch; its modules do."""
