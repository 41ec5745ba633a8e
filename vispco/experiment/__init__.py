"""An experiment: what its file asks for, what that costs, and the run that brings it to its end."""
