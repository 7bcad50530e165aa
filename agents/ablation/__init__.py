"""What each group of observations is worth, and what perfect predictions would be."""
