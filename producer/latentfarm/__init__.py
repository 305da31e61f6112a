"""latentfarm: a render farm for latent diffusion. This package is the light side: no torch."""

__version__ = "0.1.0"
