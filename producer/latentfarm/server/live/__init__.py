"""Events and progress of the farm, followed once a server and passed to all its clients."""
