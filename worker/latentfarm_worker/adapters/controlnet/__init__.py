"""ControlNets: nets by alias, and the residuals that they add to the model of a row."""
