"""Learning from the look-ahead: what it finds out is recorded, and a policy is fitted to that."""
