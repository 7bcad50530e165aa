"""Changes to recordings before they are played, each with a name for tables."""
