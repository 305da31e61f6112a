"""LoRAs (arXiv 2106.09685) of single jobs: read, checked, stacked on the device and applied row by row."""
