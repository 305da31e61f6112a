"""AUTOMATIC1111's protocol, as far as its clients use it: images from text, the model, menus and progress."""

from latentfarm.server.a1111 import catalogue, images, options

OPERATIONS = (*options.OPERATIONS, *catalogue.OPERATIONS, *images.OPERATIONS)
