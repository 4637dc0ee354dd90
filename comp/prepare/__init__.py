"""A competition's download to one npz, and an audit of what is odd in it."""
