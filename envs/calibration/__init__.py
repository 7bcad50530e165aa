"""From measured steps to the laws of a hardware tier, and how well they hold."""
