"""What goes over the wire: types of requests, and nothing else."""
